//! Replies: one tree, written as JSON or as XML.
//!
//! The tree is JSON's. In ECS's XML an object's key is an element, and a list is its element again and again: what is
//! `{"Instances": {"Instance": [{…}, {…}]}}` in JSON is `<Instances><Instance>…</Instance><Instance>…</Instance>
//! </Instances>`. A reply's root is named after its action (`<RunInstancesResponse>`), a refusal's is `<Error>`.

use crate::ecs::refusal::Refusal;
use serde_json::{Map, Value, json};

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// XML.
    Xml,
}

impl Format {
    /// The answer's content type.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json;charset=utf-8",
            Self::Xml => "text/xml;charset=utf-8",
        }
    }

    /// The bytes of an action's reply.
    pub fn reply(self, action: &str, request_id: &str, fields: Map<String, Value>) -> String {
        let mut fields = fields;
        fields.insert("RequestId".into(), request_id.into());
        self.write(&format!("{action}Response"), &Value::Object(fields))
    }

    /// The bytes of a refusal.
    pub fn refusal(self, request_id: &str, host: &str, refusal: &Refusal) -> String {
        let envelope = json!({
            "RequestId": request_id,
            "HostId": host,
            "Code": refusal.code,
            "Message": refusal.message,
            "Recommend": refusal.recommend,
        });
        self.write("Error", &envelope)
    }

    fn write(self, root: &str, tree: &Value) -> String {
        match self {
            Self::Json => tree.to_string(),
            Self::Xml => {
                let mut text = String::from("<?xml version='1.0' encoding='UTF-8'?>");
                element(&mut text, root, tree);
                text
            }
        }
    }
}

/// Writes `value` as elements called `name`: one, or one per item of a list. Names are ours and need no escape.
pub(super) fn element(text: &mut String, name: &str, value: &Value) {
    if let Value::Array(items) = value {
        for item in items {
            element(text, name, item);
        }
        return;
    }
    text.extend(["<", name, ">"]);
    match value {
        Value::Null | Value::Array(_) => {}
        Value::Bool(value) => text.push_str(if *value { "true" } else { "false" }),
        Value::Number(number) => text.push_str(&number.to_string()),
        Value::String(value) => escape(text, value),
        Value::Object(fields) => {
            for (name, value) in fields {
                element(text, name, value);
            }
        }
    }
    text.extend(["</", name, ">"]);
}

/// Text between tags. What XML 1.0 cannot hold at all becomes U+FFFD; a carriage return would be read as a line feed.
fn escape(text: &mut String, value: &str) {
    for character in value.chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '\r' => text.push_str("&#13;"),
            '\t' | '\n' => text.push(character),
            '\0'..='\x1f' | '\u{fffe}' | '\u{ffff}' => text.push('\u{fffd}'),
            _ => text.push(character),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn one_tree_is_written_both_ways() {
        let tree = json!({
            "Instances": {"Instance": [{"InstanceId": "i-1", "Cpu": 2}, {"InstanceId": "i-2"}]},
            "TotalCount": 2,
            "NextToken": "",
            "Tags": {"Tag": []},
            "IoOptimized": true,
        });
        assert_eq!(
            Format::Xml.reply("DescribeInstances", "R", fields(tree.clone())),
            "<?xml version='1.0' encoding='UTF-8'?><DescribeInstancesResponse>\
             <Instances><Instance><Cpu>2</Cpu><InstanceId>i-1</InstanceId></Instance>\
             <Instance><InstanceId>i-2</InstanceId></Instance></Instances>\
             <IoOptimized>true</IoOptimized><NextToken></NextToken><RequestId>R</RequestId>\
             <Tags></Tags><TotalCount>2</TotalCount></DescribeInstancesResponse>"
        );
        let written = Format::Json.reply("DescribeInstances", "R", fields(tree));
        let read: Value = serde_json::from_str(&written).unwrap();
        assert_eq!(read["Instances"]["Instance"][1]["InstanceId"], "i-2");
        assert_eq!(read["RequestId"], "R");
    }

    #[test]
    fn a_refusal_has_the_envelope_of_ecs() {
        let refusal = Refusal::bad("InvalidParameter", "a<b&\"c\"\u{1}\r").recommend("x");
        assert_eq!(
            Format::Xml.refusal("R", "h", &refusal),
            "<?xml version='1.0' encoding='UTF-8'?><Error><Code>InvalidParameter</Code>\
             <HostId>h</HostId><Message>a&lt;b&amp;\"c\"\u{fffd}&#13;</Message>\
             <Recommend>x</Recommend><RequestId>R</RequestId></Error>"
        );
        let read: Value = serde_json::from_str(&Format::Json.refusal("R", "h", &refusal)).unwrap();
        assert_eq!(read["Code"], "InvalidParameter");
        assert_eq!(read["HostId"], "h");
    }
}
