//! An action's parameters: a tree of names, taken out typed, and what is left judged.
//!
//! On the wire the tree is flat: `Tag.1.Key=a`, `InstanceId.2=i-…`, or a list or an object as JSON text
//! (`InstanceId=["i-…"]`). An action takes what it knows by [`Params::text`] and its like; [`Params::finish`] then looks
//! at what is left. What ECS documents for this action and nobody took is refused, so that nothing a caller relies on is
//! ignored in silence. What ECS does not document either is let pass, as ECS does: that is [`NOISE`], which clients send
//! whatever the action, and other names, which the answer lists in a header. An empty value is as good as none.

use crate::ecs::documented::{Action, Field, Fields, Kind};
use crate::ecs::refusal::Refusal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;

/// What SDKs and tools send with any action, and what means nothing here.
pub const NOISE: [&str; 9] = [
    // The command line and the older SDKs write down whose resource it is; a key has one tenant here.
    "OwnerAccount",
    "OwnerId",
    "ResourceOwnerAccount",
    "ResourceOwnerId",
    // The region is checked for every action, whether it documents one or not.
    "RegionId",
    // Terraform's provider describes how it called.
    "SecureTransport",
    "SourceIp",
    // An empty element of older serializers, and the empty token of permanent keys.
    "on",
    "SecurityToken",
];

/// The highest index in a list.
const MAX_INDEX: usize = 1_000;

/// The parameters of an action, or of one object in them.
#[derive(Debug)]
pub struct Params {
    action: &'static str,
    /// The full name of this object with a dot, empty at the root.
    prefix: String,
    documented: &'static Fields,
    pairs: BTreeMap<String, String>,
    ignored: Vec<String>,
}

impl Params {
    /// The parameters of a call.
    pub fn new(action: &'static Action, pairs: BTreeMap<String, String>) -> Result<Self, Refusal> {
        let documented = &action.request;
        let (prefix, ignored) = (String::new(), Vec::new());
        let mut params = Self { action: action.name, prefix, documented, pairs, ignored };
        params.unfold()?;
        Ok(params)
    }

    /// A text.
    pub fn text(&mut self, name: &str) -> Option<String> {
        self.pairs.remove(name).filter(|value| !value.is_empty())
    }

    /// A text that must be there.
    pub fn needed(&mut self, name: &str) -> Result<String, Refusal> {
        self.text(name).ok_or_else(|| Refusal::missing(&self.full(name)))
    }

    /// A text within a length in characters.
    pub fn name(
        &mut self,
        name: &str,
        length: RangeInclusive<usize>,
    ) -> Result<Option<String>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        if !length.contains(&text.chars().count()) {
            let why = format!("it must have {} to {} characters", length.start(), length.end());
            return Err(Refusal::invalid(&self.full(name), why));
        }
        if text.chars().any(char::is_control) {
            return Err(Refusal::invalid(&self.full(name), "it has a control character"));
        }
        Ok(Some(text))
    }

    /// An integer within a range.
    pub fn integer(
        &mut self,
        name: &str,
        range: RangeInclusive<u64>,
    ) -> Result<Option<u64>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse() {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => {
                let why = format!("it must be from {} to {}", range.start(), range.end());
                Err(Refusal::invalid(&self.full(name), why))
            }
        }
    }

    /// `true` or `false`, as any of the languages of the SDKs prints it.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.text(name) {
            None => Ok(None),
            Some(text) if text.eq_ignore_ascii_case("true") => Ok(Some(true)),
            Some(text) if text.eq_ignore_ascii_case("false") => Ok(Some(false)),
            Some(_) => Err(Refusal::invalid(&self.full(name), "it must be true or false")),
        }
    }

    /// A number with or without a fraction that is not below zero.
    pub fn fraction(&mut self, name: &str) -> Result<Option<f64>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() && number >= 0.0 => Ok(Some(number)),
            _ => Err(Refusal::invalid(&self.full(name), "it must be a number")),
        }
    }

    /// A text of which only some values are possible here; for others the refusal names them.
    pub fn one_of(&mut self, name: &str, values: &[&str]) -> Result<Option<String>, Refusal> {
        match self.text(name) {
            Some(text) if !values.contains(&text.as_str()) => {
                let why = format!("{text:?} is not supported, only {}", values.join(", "));
                Err(Refusal::invalid(&self.full(name), why))
            }
            text => Ok(text),
        }
    }

    /// A list of texts (`X.1`, `X.2`), in the order of its indices.
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, Refusal> {
        let mut texts = Vec::new();
        for (index, mut item) in self.items(name)? {
            match item.remove("") {
                Some(text) if item.is_empty() => texts.push(text),
                _ => {
                    let name = format!("{}.{index}", self.full(name));
                    return Err(Refusal::invalid(&name, "it is a text"));
                }
            }
        }
        texts.retain(|text| !text.is_empty());
        Ok(texts)
    }

    /// A list of texts that ECS documents as one text: JSON, or a single value.
    pub fn json_texts(&mut self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        let Some(text) = self.text(name) else { return Ok(None) };
        if !text.trim_start().starts_with('[') {
            return Ok(Some(text.split(',').map(|id| id.trim().to_owned()).collect()));
        }
        // Python's own form of a list has single quotes; what is listed here never has any.
        let list = serde_json::from_str(&text);
        list.or_else(|_| serde_json::from_str(&text.replace('\'', "\""))).map(Some).map_err(|_| {
            Refusal::invalid(&self.full(name), "it must be a JSON list such as [\"a\",\"b\"]")
        })
    }

    /// One object (`SystemDisk.Size`), each read and finished by `read`.
    pub fn object<T>(
        &mut self,
        name: &str,
        read: impl FnOnce(&mut Self) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let dot = format!("{name}.");
        let mut inner = BTreeMap::new();
        for (key, value) in self.drain(&dot) {
            inner.insert(key[dot.len()..].to_owned(), value);
        }
        let mut params = self.inner(name, name, inner);
        let object = read(&mut params)?;
        self.ignored.extend(params.finish()?);
        Ok(object)
    }

    /// A list of objects (`Tag.1.Key`), each read and finished by `read`.
    pub fn objects<T>(
        &mut self,
        name: &str,
        mut read: impl FnMut(&mut Self) -> Result<T, Refusal>,
    ) -> Result<Vec<T>, Refusal> {
        let mut objects = Vec::new();
        for (index, item) in self.items(name)? {
            let mut params = self.inner(name, &format!("{name}.{index}"), item);
            objects.push(read(&mut params)?);
            self.ignored.extend(params.finish()?);
        }
        Ok(objects)
    }

    /// Judges what nobody took. The names that ECS does not document either are given back.
    pub fn finish(&mut self) -> Result<Vec<String>, Refusal> {
        let mut ignored = std::mem::take(&mut self.ignored);
        for (name, value) in std::mem::take(&mut self.pairs) {
            if value.is_empty() || (self.prefix.is_empty() && NOISE.contains(&name.as_str())) {
                continue;
            }
            let full = self.full(&name);
            if is_documented(self.documented, &name) {
                let message = format!(
                    "The parameter \"{full}\" of {} is not supported by this cloud yet.",
                    self.action
                );
                return Err(Refusal::bad("UnsupportedParameter", message)
                    .recommend("Leave it out: it would have no effect here."));
            }
            ignored.push(full);
        }
        Ok(ignored)
    }

    /// The full name of a parameter of this object.
    pub fn full(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Lists and objects that were given as JSON become what they would have been as flat names.
    fn unfold(&mut self) -> Result<(), Refusal> {
        let folded = |(name, field): (&&'static str, &Field)| match field.kind {
            Kind::Texts | Kind::Object(_) | Kind::Objects(_) => Some(*name),
            _ => None,
        };
        for name in self.documented.iter().filter_map(folded) {
            let Some(text) = self.pairs.get(name) else { continue };
            if !text.trim_start().starts_with(['[', '{']) {
                continue;
            }
            let tree: Value = serde_json::from_str(text)
                .map_err(|_| Refusal::invalid(name, "it is no JSON, though it begins as such"))?;
            self.pairs.remove(name);
            flatten(name.to_owned(), tree, &mut self.pairs)?;
        }
        Ok(())
    }

    /// The items of a list in order, each with its flat names below the index.
    fn items(&mut self, name: &str) -> Result<BTreeMap<usize, BTreeMap<String, String>>, Refusal> {
        let dot = format!("{name}.");
        let mut items: BTreeMap<usize, BTreeMap<String, String>> = BTreeMap::new();
        for (key, value) in self.drain(&dot) {
            let rest = &key[dot.len()..];
            let (index, inner) = rest.split_once('.').unwrap_or((rest, ""));
            match index.parse() {
                Ok(number @ 1..=MAX_INDEX) => {
                    items.entry(number).or_default().insert(inner.to_owned(), value);
                }
                _ => {
                    let why = format!("its index must be from 1 to {MAX_INDEX}");
                    return Err(Refusal::invalid(&self.full(&key), why));
                }
            }
        }
        // One value where a list could be is a list of one.
        if let Some(only) = self.text(name) {
            items.entry(1).or_default().insert(String::new(), only);
        }
        Ok(items)
    }

    fn drain(&mut self, dot: &str) -> Vec<(String, String)> {
        let range = self.pairs.range(dot.to_owned()..);
        let names: Vec<_> = range.map(|(key, _)| key.clone()).collect();
        let within = names.into_iter().take_while(|key| key.starts_with(dot));
        within.filter_map(|key| self.pairs.remove_entry(&key)).collect()
    }

    fn inner(&self, name: &str, indexed: &str, pairs: BTreeMap<String, String>) -> Self {
        static NOTHING: Fields = Fields::new();
        let documented = match self.documented.get(name).map(|field| &field.kind) {
            Some(Kind::Object(fields) | Kind::Objects(fields)) => fields,
            _ => &NOTHING,
        };
        let prefix = format!("{}{indexed}.", self.prefix);
        Self { action: self.action, prefix, documented, pairs, ignored: Vec::new() }
    }
}

/// Whether a flat name leads to something that is documented.
fn is_documented(fields: &Fields, name: &str) -> bool {
    fields.contains_key(name.split('.').next().unwrap_or(name))
}

fn flatten(name: String, tree: Value, pairs: &mut BTreeMap<String, String>) -> Result<(), Refusal> {
    if name.split('.').count() > 6 || pairs.len() > super::request::MAX_PARAMETERS {
        return Err(Refusal::invalid(&name, "its JSON is nested too deep or too large"));
    }
    let value = match tree {
        Value::Null => return Ok(()),
        Value::String(text) => text,
        Value::Bool(value) => value.to_string(),
        Value::Number(number) => number.to_string(),
        Value::Array(items) => {
            for (index, item) in items.into_iter().enumerate() {
                flatten(format!("{name}.{}", index + 1), item, pairs)?;
            }
            return Ok(());
        }
        Value::Object(fields) => {
            for (key, item) in fields {
                flatten(format!("{name}.{key}"), item, pairs)?;
            }
            return Ok(());
        }
    };
    match pairs.contains_key(&name) {
        true => Err(Refusal::invalid(&name, "it is given more than once")),
        false => {
            pairs.insert(name, value);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ecs::documented::{Version, action};

    fn params(name: &str, pairs: &[(&str, &str)]) -> Params {
        let pairs = pairs.iter().map(|(name, value)| (name.to_string(), value.to_string()));
        Params::new(action(Version::Ecs, name).unwrap(), pairs.collect()).unwrap()
    }

    fn key_value(tag: &mut Params) -> Result<(String, Option<String>), Refusal> {
        Ok((tag.needed("Key")?, tag.text("Value")))
    }

    #[test]
    fn values_have_types() {
        let mut p = params(
            "RunInstances",
            &[
                ("Amount", "3"),
                ("MinAmount", "x"),
                ("DryRun", "True"),
                ("AutoPay", "1"),
                ("SystemDisk.Size", "40"),
                ("SpotPriceLimit", "0.5"),
                ("InstanceName", "a\u{7}b"),
                ("HostName", ""),
            ],
        );
        assert_eq!(p.integer("Amount", 1..=100).unwrap(), Some(3));
        assert_eq!(p.integer("MinAmount", 1..=100).unwrap_err().code, "InvalidParameter");
        assert_eq!(p.boolean("DryRun").unwrap(), Some(true));
        assert!(p.boolean("AutoPay").is_err());
        assert_eq!(p.fraction("SpotPriceLimit").unwrap(), Some(0.5));
        assert!(p.name("InstanceName", 2..=128).is_err());
        assert_eq!(p.text("HostName"), None);
        let size = p.object("SystemDisk", |disk| disk.integer("Size", 20..=2048)).unwrap();
        assert_eq!(size, Some(40));
        assert_eq!(p.needed("ImageId").unwrap_err().code, "MissingParameter");
        assert_eq!(p.finish().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn lists_are_flat_names_or_json() {
        for pairs in [
            &[("InstanceId.2", "i-2"), ("InstanceId.10", "i-10"), ("InstanceId.1", "i-1")][..],
            &[("InstanceId", "[\"i-1\", \"i-2\", \"i-10\"]")],
        ] {
            let mut p = params("StopInstances", pairs);
            assert_eq!(p.texts("InstanceId").unwrap(), ["i-1", "i-2", "i-10"]);
            assert!(p.finish().unwrap().is_empty());
        }
        let mut p = params("StopInstances", &[("InstanceId", "i-1")]);
        assert_eq!(p.texts("InstanceId").unwrap(), ["i-1"]);
        for (name, value) in [("Tag.1.Key", "a"), ("Tag", "[{\"Key\": \"a\"}]")] {
            let mut p = params("RunInstances", &[(name, value)]);
            assert_eq!(p.objects("Tag", key_value).unwrap(), [("a".into(), None)]);
        }
        for text in ["[\"i-1\"]", "['i-1']", "i-1"] {
            let mut p = params("DescribeInstances", &[("InstanceIds", text)]);
            assert_eq!(p.json_texts("InstanceIds").unwrap(), Some(vec!["i-1".to_owned()]));
        }
        let mut p = params("DescribeInstances", &[("InstanceIds", "[\"i-1\"")]);
        assert_eq!(p.json_texts("InstanceIds").unwrap_err().code, "InvalidParameter");
    }

    #[test]
    fn odd_trees_are_refused() {
        for name in ["InstanceId.0", "InstanceId.x", "InstanceId.1.Id", "InstanceId.99999999"] {
            assert!(params("StopInstances", &[(name, "i-1")]).texts("InstanceId").is_err());
        }
        let action = action(Version::Ecs, "RunInstances").unwrap();
        for text in ["[1", "[[[[[[[[1]]]]]]]]", &"[".repeat(100_000)] {
            let pairs = BTreeMap::from([("Tag".to_owned(), text.to_owned())]);
            assert_eq!(Params::new(action, pairs).unwrap_err().code, "InvalidParameter");
        }
    }

    #[test]
    fn what_is_documented_and_not_taken_is_refused() {
        for (name, value) in
            [("SpotStrategy", "SpotAsPriceGo"), ("Arn.1.RoleType", "x"), ("Ipv6Address.1", "::1")]
        {
            let refusal = params("RunInstances", &[(name, value)]).finish().unwrap_err();
            assert_eq!(refusal.code, "UnsupportedParameter");
            assert!(refusal.message.contains(name), "{}", refusal.message);
        }
        let mut p = params("RunInstances", &[("DataDisk.1.Size", "5"), ("DataDisk.1.Device", "x")]);
        let refusal = p.objects("DataDisk", |disk| disk.integer("Size", 1..=9)).unwrap_err();
        assert!(refusal.message.contains("DataDisk.1.Device"), "{}", refusal.message);
    }

    #[test]
    fn the_noise_of_clients_is_accepted_and_other_names_are_listed() {
        let mut pairs: Vec<_> = NOISE.iter().map(|name| (*name, "x")).collect();
        pairs.extend([("Unheard", "1"), ("Tag.1.Unheard", "2"), ("Tag.1.Key", "k")]);
        let mut p = params("RunInstances", &pairs);
        p.objects("Tag", key_value).unwrap();
        assert_eq!(p.finish().unwrap(), ["Tag.1.Unheard", "Unheard"]);
    }
}
