//! Seconds since 1970 and the calendar fields of a real-time clock.
//!
//! Proleptic Gregorian, UTC, no leap seconds. The algorithm counts days from 1 March of year 0, where a leap day is the
//! last day of its year.

/// A moment in calendar fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calendar {
    /// The year, from 0 on.
    pub year: u32,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31.
    pub day: u8,
    /// 1 (Sunday) to 7.
    pub weekday: u8,
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
}

/// Days from 1 March of year 0 to 1 January 1970.
const EPOCH_DAYS: i64 = 719_468;
const DAYS_PER_400_YEARS: i64 = 146_097;
const SECONDS_PER_DAY: i64 = 86_400;

impl Calendar {
    /// The fields of `seconds` since 1970; before year 0 they stay at its start.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        let days = seconds.div_euclid(SECONDS_PER_DAY).max(60 - EPOCH_DAYS) + EPOCH_DAYS;
        let of_day = seconds.rem_euclid(SECONDS_PER_DAY);
        let era = days.div_euclid(DAYS_PER_400_YEARS);
        let of_era = days.rem_euclid(DAYS_PER_400_YEARS);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = (month_from_march + 2) % 12 + 1;
        let year = 400 * era + year_of_era + i64::from(month <= 2);
        Self {
            year: u32::try_from(year).unwrap_or(u32::MAX),
            month: month as u8,
            day: day as u8,
            // Day 0 was a Wednesday.
            weekday: ((days + 3).rem_euclid(7) + 1) as u8,
            hour: (of_day / 3600) as u8,
            minute: (of_day / 60 % 60) as u8,
            second: (of_day % 60) as u8,
        }
    }

    /// Seconds since 1970. Fields out of range carry over, as 31 February does to 2 or 3 March.
    #[must_use]
    pub fn to_seconds(self) -> i64 {
        let month = i64::from(self.month.clamp(1, 12));
        let year = i64::from(self.year) - i64::from(month <= 2);
        let era = year.div_euclid(400);
        let year_of_era = year.rem_euclid(400);
        let of_year = (153 * ((month + 9) % 12) + 2) / 5 + i64::from(self.day) - 1;
        let of_era = 365 * year_of_era + year_of_era / 4 - year_of_era / 100 + of_year;
        let days = DAYS_PER_400_YEARS * era + of_era - EPOCH_DAYS;
        days * SECONDS_PER_DAY
            + i64::from(self.hour) * 3600
            + i64::from(self.minute) * 60
            + i64::from(self.second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_moments() {
        let fields = |seconds| {
            let c = Calendar::from_seconds(seconds);
            (c.year, c.month, c.day, c.weekday, c.hour, c.minute, c.second)
        };
        assert_eq!(fields(0), (1970, 1, 1, 5, 0, 0, 0));
        assert_eq!(fields(951_782_400), (2000, 2, 29, 3, 0, 0, 0));
        assert_eq!(fields(1_700_000_000), (2023, 11, 14, 3, 22, 13, 20));
        assert_eq!(fields(4_102_444_799), (2099, 12, 31, 5, 23, 59, 59));
    }

    proptest! {
        #[test]
        fn back_and_forth_is_the_same(seconds in -60_000_000_000_i64..200_000_000_000) {
            prop_assert_eq!(Calendar::from_seconds(seconds).to_seconds(), seconds);
        }
    }
}
