//! Times as ECS writes them: UTC, ISO 8601, to the second or to the minute.

use time::{Date, Month, OffsetDateTime, Time};

/// Seconds since 1970 of `2026-01-31T12:00:00Z`, or of the form without seconds.
pub fn parse(text: &str) -> Option<i64> {
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let [year, month, day] = numbers(date, '-', [4, 2, 2])?;
    let [hour, minute, second] = match time.len() {
        5 => {
            let [hour, minute] = numbers(time, ':', [2, 2])?;
            [hour, minute, 0]
        }
        _ => numbers(time, ':', [2, 2, 2])?,
    };
    let month = Month::try_from(u8::try_from(month).ok()?).ok()?;
    let date = Date::from_calendar_date(i32::from(year), month, u8::try_from(day).ok()?).ok()?;
    let [hour, minute, second] = [hour, minute, second].map(|number| u8::try_from(number).ok());
    let time = Time::from_hms(hour?, minute?, second?).ok()?;
    Some(date.with_time(time).assume_utc().unix_timestamp())
}

fn numbers<const N: usize>(text: &str, between: char, widths: [usize; N]) -> Option<[u16; N]> {
    let mut parts = text.split(between);
    let mut numbers = [0; N];
    for (number, width) in numbers.iter_mut().zip(widths) {
        let part = parts.next()?;
        if part.len() != width || !part.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        *number = part.parse().ok()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// `2026-01-31T12:00:00Z`; what lies outside the years that ECS can write is written as 1970.
pub fn to_the_second(seconds: i64) -> String {
    let t = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!("{}:{:02}Z", minutes(t), t.second())
}

/// `2026-01-31T12:00Z`, the form of an instance's creation time.
pub fn to_the_minute(seconds: i64) -> String {
    let t = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    format!("{}Z", minutes(t))
}

fn minutes(t: OffsetDateTime) -> String {
    let (month, day) = (u8::from(t.month()), t.day());
    format!("{:04}-{month:02}-{day:02}T{:02}:{:02}", t.year(), t.hour(), t.minute())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        assert_eq!(parse("2016-02-23T12:46:24Z"), Some(1_456_231_584));
        assert_eq!(to_the_second(1_456_231_584), "2016-02-23T12:46:24Z");
        assert_eq!(to_the_minute(1_456_231_584), "2016-02-23T12:46Z");
        assert_eq!(parse("2016-02-23T12:46Z"), Some(1_456_231_560));
    }

    #[test]
    fn what_is_no_time_is_refused() {
        for text in [
            "",
            "Z",
            "TZ",
            "2016-02-30T12:46:24Z",
            "2016-02-23T24:46:24Z",
            "2016-02-23 12:46:24Z",
            "2016-02-23T12:46:24",
            "2016-2-23T12:46:24Z",
            "2016-02-23T12:46:+4Z",
            "+016-02-23T12:46:24Z",
            "2016-02-23T12:46:24+08:00",
            "99999-02-23T12:46:24Z",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
