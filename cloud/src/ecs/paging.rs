//! Pages of lists, in both of ECS's ways: by number (`PageNumber`, `PageSize`) and by token (`NextToken`, `MaxResults`).
//!
//! A list is in the order of creation, then of ids. A token names the last item that was shown, so that a page begins
//! where the last one ended even if items came and went meanwhile.

use super::dispatch::Reply;
use super::refusal::Refusal;
use super::wire::params::Params;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

/// What makes the order of a list: when an item was made, and its id.
pub type Place = (u64, String);

/// Which page is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Page {
    /// By number, from 1.
    Number {
        /// The page's number.
        number: u64,
        /// Items per page.
        size: u64,
    },
    /// By token.
    After {
        /// The last item that was shown; `None` begins the list.
        last: Option<Place>,
        /// Items at most.
        most: u64,
    },
}

impl Page {
    /// Takes the parameters of paging; what the action does not document is not taken.
    pub fn read(params: &mut Params) -> Result<Self, Refusal> {
        let number = params.integer("PageNumber", 1..=1_000_000)?;
        let size = params.integer("PageSize", 1..=100)?;
        let most = params.integer("MaxResults", 1..=1_600)?;
        let last = Self::last(params)?;
        if most.is_none() && last.is_none() {
            return Ok(Self::Number { number: number.unwrap_or(1), size: size.unwrap_or(10) });
        }
        Ok(Self::After { last, most: most.or(size).unwrap_or(10) })
    }

    /// The same for an action that knows tokens alone, with `most` items at a time.
    pub fn read_token(params: &mut Params, most: u64) -> Result<Self, Refusal> {
        Ok(Self::After { last: Self::last(params)?, most })
    }

    fn last(params: &mut Params) -> Result<Option<Place>, Refusal> {
        let Some(token) = params.text("NextToken") else { return Ok(None) };
        decode(&token).map(Some).ok_or_else(|| {
            Refusal::invalid("NextToken", "it is none that was given out for this list")
        })
    }

    /// The items of the page as `shown`, and the fields about it in `reply`.
    pub fn cut<T>(
        &self,
        mut items: Vec<T>,
        place: impl Fn(&T) -> Place,
        reply: &mut Reply,
        show: impl FnMut(&T) -> Value,
    ) -> Vec<Value> {
        items.sort_by_cached_key(&place);
        let total = items.len();
        reply.insert("TotalCount".into(), total.into());
        let shown = match self {
            Self::Number { number, size } => {
                reply.insert("PageNumber".into(), (*number).into());
                reply.insert("PageSize".into(), (*size).into());
                let skip = usize::try_from((number - 1).saturating_mul(*size));
                let from = skip.unwrap_or(usize::MAX).min(total);
                let to = from.saturating_add(*size as usize).min(total);
                &items[from..to]
            }
            Self::After { last, most } => {
                let seen = |item: &T| last.as_ref().is_some_and(|last| place(item) <= *last);
                let from = items.partition_point(seen);
                let to = from.saturating_add(*most as usize).min(total);
                let next = match items[from..to].last() {
                    Some(item) if to < total => encode(&place(item)),
                    _ => String::new(),
                };
                reply.insert("NextToken".into(), next.into());
                // Clients of both ways read these; a list by token has no number.
                reply.insert("PageNumber".into(), 1.into());
                reply.insert("PageSize".into(), (*most).into());
                &items[from..to]
            }
        };
        shown.iter().map(show).collect()
    }
}

fn encode((created, id): &Place) -> String {
    URL_SAFE_NO_PAD.encode(format!("{created} {id}"))
}

fn decode(token: &str) -> Option<Place> {
    let text = String::from_utf8(URL_SAFE_NO_PAD.decode(token).ok()?).ok()?;
    let (created, id) = text.split_once(' ')?;
    Some((created.parse().ok()?, id.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecs::documented::{Version, action};

    fn page(pairs: &[(&str, &str)]) -> Result<Page, Refusal> {
        let pairs = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        let action = action(Version::Ecs, "DescribeInstances").unwrap();
        Page::read(&mut Params::new(action, pairs.collect()).unwrap())
    }

    fn cut(page: &Page, items: &[u64]) -> (Vec<u64>, Reply) {
        let mut reply = Reply::new();
        let place = |item: &u64| (1, format!("i-{item:04}"));
        let shown = page.cut(items.to_vec(), place, &mut reply, |item| (*item).into());
        (shown.iter().filter_map(Value::as_u64).collect(), reply)
    }

    #[test]
    fn pages_by_number() {
        let items: Vec<u64> = (0..25).collect();
        let (shown, reply) = cut(&page(&[]).unwrap(), &items);
        assert_eq!(shown, (0..10).collect::<Vec<_>>());
        assert_eq!(reply["TotalCount"], 25);
        assert_eq!((&reply["PageNumber"], &reply["PageSize"]), (&1.into(), &10.into()));
        let (shown, _) = cut(&page(&[("PageNumber", "3")]).unwrap(), &items);
        assert_eq!(shown, (20..25).collect::<Vec<_>>());
        assert!(cut(&page(&[("PageNumber", "999999")]).unwrap(), &items).0.is_empty());
        for bad in
            [("PageNumber", "0"), ("PageSize", "101"), ("PageSize", "-1"), ("NextToken", "x")]
        {
            assert_eq!(page(&[bad]).unwrap_err().code, "InvalidParameter");
        }
    }

    #[test]
    fn pages_by_token_lose_and_repeat_nothing_while_items_go() {
        let mut items: Vec<u64> = (0..25).collect();
        let (mut token, mut seen) = (String::new(), Vec::new());
        loop {
            let page = page(&[("MaxResults", "10"), ("NextToken", &token)]).unwrap();
            let (shown, reply) = cut(&page, &items);
            seen.extend(shown);
            token = reply["NextToken"].as_str().unwrap().to_owned();
            items.retain(|item| *item != 0 && *item != 9);
            if token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, (0..25).collect::<Vec<_>>());
    }
}
