//! Profiles: which cloud, and as whom.
//!
//! They are one JSON file of mode 0600, by default `~/.config/bixi/profiles.json`, because it holds secrets; one that
//! others can read is refused. It is replaced whole, never changed in place. The environment has the last word, so that
//! a program needs no file at all.

mod command;
mod file;

pub use command::Command;
pub use file::{Profile, ProfileError, Profiles, path};

use std::env;

/// The profile to use: `name`, else the current one, with the environment's changes.
pub fn chosen(name: Option<&str>) -> Result<Profile, ProfileError> {
    let profiles = Profiles::read(&path()?)?;
    choose(&profiles, name, |name| env::var(name).ok().filter(|value| !value.is_empty()))
}

fn choose(
    profiles: &Profiles,
    name: Option<&str>,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Profile, ProfileError> {
    let named = name.or(profiles.current.as_deref());
    let found = named.map(|name| profiles.get(name)).transpose()?;
    let mut profile = found.cloned().unwrap_or_default();
    for (name, field) in
        [("BIXI_ENDPOINT", &mut profile.endpoint), ("BIXI_REGION", &mut profile.region)]
    {
        if let Some(value) = environment(name) {
            *field = value;
        }
    }
    for (name, field) in [
        ("BIXI_ACCESS_KEY_ID", &mut profile.access_key_id),
        ("BIXI_ACCESS_KEY_SECRET", &mut profile.access_key_secret),
        ("BIXI_OPERATOR_TOKEN", &mut profile.operator_token),
    ] {
        *field = environment(name).or(field.take());
    }
    if let Some(file) = environment("BIXI_CA") {
        profile.ca_file = file.into();
    }
    if profile.endpoint.is_empty() || profile.ca_file.as_os_str().is_empty() {
        return Err(ProfileError::None);
    }
    Ok(profile)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_has_the_last_word() {
        let mut profiles = Profiles::default();
        let of = |endpoint: &str| Profile {
            endpoint: endpoint.to_owned(),
            ca_file: "/ca".into(),
            access_key_id: Some("K".to_owned()),
            ..Profile::default()
        };
        profiles.add("a", of("a:1"));
        profiles.add("b", of("b:1"));
        let nothing = |_: &str| None;
        assert_eq!(choose(&profiles, None, nothing).unwrap().endpoint, "a:1");
        assert_eq!(choose(&profiles, Some("b"), nothing).unwrap().endpoint, "b:1");
        let told = |name: &str| (name == "BIXI_ACCESS_KEY_ID").then(|| "L".to_owned());
        let profile = choose(&profiles, None, told).unwrap();
        assert_eq!(profile.access_key_id.as_deref(), Some("L"));
        assert_eq!(profile.region, "cn-local");
        let unknown = choose(&profiles, Some("c"), nothing).unwrap_err();
        assert!(unknown.to_string().contains("a, b"), "{unknown}");
    }

    #[test]
    fn without_a_file_the_environment_is_enough() {
        let told = |name: &str| match name {
            "BIXI_ENDPOINT" => Some("x:1".to_owned()),
            "BIXI_CA" => Some("/ca".to_owned()),
            _ => None,
        };
        assert_eq!(choose(&Profiles::default(), None, told).unwrap().endpoint, "x:1");
        let none = choose(&Profiles::default(), None, |_| None).unwrap_err();
        assert!(none.to_string().contains("bixi profile add"), "{none}");
    }
}
