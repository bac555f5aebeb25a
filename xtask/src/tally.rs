//! Counts what test programs say they did, line by line as it comes.
//!
//! Understands the output of libtest and of what imitates it: `running N tests`, `test result: …`, and with
//! `--show-output` what passing tests wrote. A passing test that wrote a line `SKIPPED: why` counts as skipped. A program
//! that dies without its result line counts as one failed test.

/// Sums over all test programs.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and programs that died.
    pub failed: u64,
    /// Tests that could not run here, or were not asked for.
    pub skipped: u64,
    /// Whether a program has begun and not yet told its result.
    open: bool,
    /// Inside the list of what passing tests wrote.
    shown: bool,
    /// The passing test whose output is being read, and whether it has said that it skips.
    section: Option<(String, bool)>,
    /// Tests of the open program that said so.
    pending: u64,
}

impl Tally {
    /// Takes in one line; what to show the user for it.
    pub fn line(&mut self, line: &str) -> Option<String> {
        let text = line.trim_end();
        if text.starts_with("running ") && text.contains(" test") {
            self.end_program();
            self.open = true;
            return None;
        }
        if let Some(result) = text.strip_prefix("test result: ") {
            self.result(result);
            return Some(line.to_owned());
        }
        match text {
            "successes:" => self.shown = true,
            "failures:" => self.shown = false,
            _ => {}
        }
        if !self.shown {
            // A program that does not capture its tests' output says it plainly.
            if let Some(reason) = text.strip_prefix("SKIPPED: ") {
                self.pending += 1;
                return Some(format!("skipped: {reason}"));
            }
            return Some(line.to_owned());
        }
        if let Some(name) = text.strip_prefix("---- ").and_then(|t| t.strip_suffix(" stdout ----"))
        {
            self.section = Some((name.to_owned(), false));
        } else if let (Some(reason), Some((name, said))) =
            (text.strip_prefix("SKIPPED: "), &mut self.section)
            && !*said
        {
            *said = true;
            self.pending += 1;
            return Some(format!("test {name} skipped: {reason}"));
        }
        None
    }

    /// No more lines come; `success` is what the programs' runner says of them all.
    pub fn finish(&mut self, success: bool) {
        self.end_program();
        if !success && self.failed == 0 {
            self.failed = 1;
        }
    }

    /// Adds another tally to this one.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    fn end_program(&mut self) {
        if self.open {
            // It began and never told its result: it died.
            self.failed += 1;
        }
        self.close();
    }

    fn close(&mut self) {
        (self.open, self.shown, self.section, self.pending) = (false, false, None, 0);
    }

    fn result(&mut self, result: &str) {
        let count = |what: &str| -> u64 {
            let words: Vec<&str> = result.split([' ', ';']).filter(|w| !w.is_empty()).collect();
            words.windows(2).find(|w| w[1] == what).and_then(|w| w[0].parse().ok()).unwrap_or(0)
        };
        let passed = count("passed");
        let skipped = self.pending.min(passed);
        self.passed += passed - skipped;
        self.failed += count("failed");
        self.skipped += skipped + count("ignored");
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tally(text: &str, success: bool) -> Tally {
        let mut tally = Tally::default();
        for line in text.lines() {
            tally.line(line);
        }
        tally.finish(success);
        tally
    }

    fn counts(tally: &Tally) -> (u64, u64, u64) {
        (tally.passed, tally.failed, tally.skipped)
    }

    const ONE: &str = "
running 3 tests
test a ... ok
test b ... ok
test c ... ignored

successes:

---- b stdout ----
SKIPPED: no /dev/kvm
SKIPPED: said twice


successes:
    a
    b

test result: ok. 2 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn a_test_that_says_it_skips_is_not_passed() {
        assert_eq!(counts(&tally(ONE, true)), (1, 0, 2));
        assert_eq!(counts(&tally(&format!("{ONE}{ONE}"), true)), (2, 0, 4));
    }

    #[test]
    fn a_program_that_dies_has_failed() {
        assert_eq!(counts(&tally("running 2 tests\ntest a ... ok\n", false)), (0, 1, 0));
        assert_eq!(counts(&tally(&format!("running 2 tests\n{ONE}"), false)), (1, 1, 2));
        assert_eq!(counts(&tally("", false)), (0, 1, 0));
    }

    #[test]
    fn failures_are_shown_and_counted() {
        let text = "
running 1 test
test a ... FAILED

failures:

---- a stdout ----
assertion failed

test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out
";
        let mut tally = Tally::default();
        let shown: Vec<String> = text.lines().filter_map(|l| tally.line(l)).collect();
        tally.finish(false);
        assert_eq!(counts(&tally), (0, 1, 0));
        assert!(shown.iter().any(|l| l == "assertion failed"), "{shown:?}");
    }
}
