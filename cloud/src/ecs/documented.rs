//! What ECS documents: every action's parameters and the fields of its reply, in `documented.txt`.
//!
//! The file is made from the models of Alibaba's own SDK. Notation: `*` required, `:i` integer, `:b` boolean, `:f`
//! fraction, `:[s]` list of texts, `:{…}` object, `:[{…}]` list of objects; what has no mark is a text. With it a
//! parameter that exists at Alibaba and not here is told from one that exists nowhere, and tests hold replies against
//! the documented fields.

use std::collections::BTreeMap;
use std::sync::LazyLock;

/// The fields of an object, by name.
pub type Fields = BTreeMap<&'static str, Field>;

/// One documented parameter or field of a reply.
#[derive(Debug, PartialEq)]
pub struct Field {
    /// Whether a request must have it.
    pub required: bool,
    /// What it is.
    pub kind: Kind,
}

/// What a field is.
#[derive(Debug, PartialEq)]
pub enum Kind {
    /// A text.
    Text,
    /// An integer.
    Integer,
    /// `true` or `false`.
    Boolean,
    /// A number with a fraction.
    Fraction,
    /// A list of texts.
    Texts,
    /// An object.
    Object(Fields),
    /// A list of objects.
    Objects(Fields),
}

/// One documented action.
#[derive(Debug)]
pub struct Action {
    /// Its name, such as `RunInstances`.
    pub name: &'static str,
    /// Its parameters.
    pub request: Fields,
    /// The fields of its reply.
    pub reply: Fields,
}

/// The version of an API: each documents its own actions, and some names are in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// ECS, 2014-05-26.
    Ecs,
    /// VPC, 2016-04-28, whose clients call the same endpoint for networks.
    Vpc,
}

impl Version {
    /// The version that a request's `Version` names.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "2014-05-26" => Some(Self::Ecs),
            "2016-04-28" => Some(Self::Vpc),
            _ => None,
        }
    }
}

static ACTIONS: LazyLock<BTreeMap<Version, BTreeMap<&'static str, Action>>> =
    LazyLock::new(|| parse(include_str!("documented.txt")));

/// The documented action of that name.
pub fn action(version: Version, name: &str) -> Option<&'static Action> {
    ACTIONS.get(&version)?.get(name)
}

fn parse(text: &'static str) -> BTreeMap<Version, BTreeMap<&'static str, Action>> {
    let mut actions: BTreeMap<_, BTreeMap<_, _>> = BTreeMap::new();
    let mut version = Version::Ecs;
    let mut name = "";
    let mut request = Fields::new();
    for line in text.lines() {
        if line.starts_with("# ====") {
            version = Version::Vpc;
        } else if let Some(heading) = line.strip_prefix("### ") {
            name = heading.trim();
        } else if let Some(fields) = line.strip_prefix("REQ ") {
            request = Reader(fields.trim()).fields();
        } else if let Some(fields) = line.strip_prefix("RESP ") {
            let reply = Reader(fields.trim()).fields();
            let request = std::mem::take(&mut request);
            let action = Action { name, request, reply };
            actions.entry(version).or_default().insert(name, action);
        }
    }
    actions
}

/// Reads the notation from the front; the text is our own, and a test reads all of it.
struct Reader(&'static str);

impl Reader {
    fn fields(&mut self) -> Fields {
        let mut fields = Fields::new();
        while let Some((name, field)) = self.field() {
            fields.insert(name, field);
            self.take(", ");
        }
        fields
    }

    fn field(&mut self) -> Option<(&'static str, Field)> {
        let end = self.0.find(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-');
        let (name, rest) = self.0.split_at(end.unwrap_or(self.0.len()));
        self.0 = rest;
        let required = self.take("*");
        let kind = if self.take(":") { self.kind() } else { Kind::Text };
        (!name.is_empty()).then_some((name, Field { required, kind }))
    }

    fn kind(&mut self) -> Kind {
        if self.take("[s]") {
            Kind::Texts
        } else if self.take("[{") {
            let fields = self.fields();
            self.take("}]");
            Kind::Objects(fields)
        } else if self.take("{") {
            let fields = self.fields();
            self.take("}");
            Kind::Object(fields)
        } else if self.take("i") {
            Kind::Integer
        } else if self.take("b") {
            Kind::Boolean
        } else {
            self.take("f");
            Kind::Fraction
        }
    }

    fn take(&mut self, text: &str) -> bool {
        let rest = self.0.strip_prefix(text);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields in the file's notation again.
    fn print(fields: &Fields) -> String {
        let field = |(name, field): (&&str, &Field)| {
            let kind = match &field.kind {
                Kind::Text => String::new(),
                Kind::Integer => ":i".into(),
                Kind::Boolean => ":b".into(),
                Kind::Fraction => ":f".into(),
                Kind::Texts => ":[s]".into(),
                Kind::Object(fields) => format!(":{{{}}}", print(fields)),
                Kind::Objects(fields) => format!(":[{{{}}}]", print(fields)),
            };
            format!("{name}{}{kind}", if field.required { "*" } else { "" })
        };
        fields.iter().map(field).collect::<Vec<_>>().join(", ")
    }

    fn length(fields: &str) -> usize {
        // Order and blanks do not count: the file's order is the SDK's.
        fields.chars().filter(|c| !c.is_whitespace()).count()
    }

    #[test]
    fn the_whole_file_is_understood() {
        let text = include_str!("documented.txt");
        let actions = parse(text);
        let headings = text.lines().filter(|line| line.starts_with("### ")).count();
        assert!(headings > 120);
        assert_eq!(actions.values().map(BTreeMap::len).sum::<usize>(), headings);
        let mut version = Version::Ecs;
        let mut name = "";
        for line in text.lines() {
            if line.starts_with("# ====") {
                version = Version::Vpc;
            } else if let Some(heading) = line.strip_prefix("### ") {
                name = heading.trim();
            } else if let Some(fields) = line.strip_prefix("REQ ") {
                assert_eq!(
                    length(&print(&actions[&version][name].request)),
                    length(fields),
                    "{name}"
                );
            } else if let Some(fields) = line.strip_prefix("RESP ") {
                assert_eq!(
                    length(&print(&actions[&version][name].reply)),
                    length(fields),
                    "{name}"
                );
            }
        }
    }

    #[test]
    fn both_versions_have_their_own_fields() {
        let ecs = action(Version::Ecs, "DescribeVpcs").unwrap();
        let vpc = action(Version::Vpc, "DescribeVpcs").unwrap();
        assert!(!ecs.request.contains_key("VpcName"));
        assert!(vpc.request.contains_key("VpcName"));
        assert!(ecs.request["RegionId"].required);
        assert!(action(Version::Vpc, "RunInstances").is_none());
    }
}
