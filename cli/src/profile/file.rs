//! The file of profiles.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// No file of profiles is larger, in bytes.
const LIMIT: u64 = 1 << 20;

/// Why there is no profile to use.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Nothing says which cloud is meant.
    #[error(
        "no profile says which cloud is meant: `bixi profile add NAME --endpoint HOST:PORT --ca FILE`, or `bixi cloud init` for a cloud on this machine"
    )]
    None,
    /// There is no such profile.
    #[error("there is no profile {name}; there is: {have}")]
    Unknown {
        /// Its name.
        name: String,
        /// Those there are.
        have: String,
    },
    /// Others could read the secrets.
    #[error("{} can be read by others: `chmod 600` it", .0.display())]
    Readable(PathBuf),
    /// The file is damaged.
    #[error("{} is no file of profiles: {source}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A file cannot be used.
    #[error("cannot {action} {}: {source}", path.display())]
    File {
        /// What was attempted.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// There is no home directory.
    #[error("neither HOME nor XDG_CONFIG_HOME is set: name the file of profiles in BIXI_PROFILES")]
    Homeless,
}

/// One profile.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profile {
    /// `HOST:PORT` of the cloud.
    pub endpoint: String,
    /// The file of the cloud's authority.
    pub ca_file: PathBuf,
    /// The region.
    pub region: String,
    /// The tenant's access key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_id: Option<String>,
    /// Its secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_key_secret: Option<String>,
    /// What operators show.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operator_token: Option<String>,
}

impl Default for Profile {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            ca_file: PathBuf::new(),
            region: "cn-local".to_owned(),
            access_key_id: None,
            access_key_secret: None,
            operator_token: None,
        }
    }
}

impl fmt::Debug for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The secrets stay out of logs.
        f.debug_struct("Profile").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

impl Profile {
    /// The authority's certificate.
    pub fn authority(&self) -> Result<String, ProfileError> {
        let wrong = |source| ProfileError::File {
            action: "read the cloud's authority in",
            path: self.ca_file.clone(),
            source,
        };
        std::fs::read_to_string(&self.ca_file).map_err(wrong)
    }
}

/// All profiles.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Profiles {
    /// The one that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// Each by its name.
    #[serde(default)]
    pub profiles: BTreeMap<String, Profile>,
}

impl Profiles {
    /// Reads a file; one that is not there holds no profiles.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let fail = |source| ProfileError::File { action: "read", path: path.to_owned(), source };
        let file = match std::fs::File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file.map_err(fail)?,
        };
        if file.metadata().map_err(fail)?.permissions().mode() & 0o077 != 0 {
            return Err(ProfileError::Readable(path.to_owned()));
        }
        let mut text = Vec::new();
        file.take(LIMIT).read_to_end(&mut text).map_err(fail)?;
        let damaged = |source| ProfileError::Damaged { path: path.to_owned(), source };
        serde_json::from_slice(&text).map_err(damaged)
    }

    /// Replaces a file.
    pub fn write(&self, path: &Path) -> Result<(), ProfileError> {
        let fail = |source| ProfileError::File { action: "write", path: path.to_owned(), source };
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        let folder = folder.unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).map_err(fail)?;
        let mut text = serde_json::to_vec_pretty(self).map_err(|e| fail(e.into()))?;
        text.push(b'\n');
        // Made with mode 0600.
        let mut file = tempfile::NamedTempFile::new_in(folder).map_err(fail)?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).map_err(fail)?;
        file.persist(path).map(drop).map_err(|e| fail(e.error))
    }

    /// The profile of that name.
    pub fn get(&self, name: &str) -> Result<&Profile, ProfileError> {
        self.profiles.get(name).ok_or_else(|| {
            let have: Vec<&str> = self.profiles.keys().map(String::as_str).collect();
            let have = if have.is_empty() { "none".to_owned() } else { have.join(", ") };
            ProfileError::Unknown { name: name.to_owned(), have }
        })
    }

    /// Adds or replaces a profile; the first one is the current one.
    pub fn add(&mut self, name: &str, profile: Profile) {
        self.profiles.insert(name.to_owned(), profile);
        self.current.get_or_insert_with(|| name.to_owned());
    }
}

/// Where the profiles are.
pub fn path() -> Result<PathBuf, ProfileError> {
    let told = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = told("BIXI_PROFILES") {
        return Ok(path);
    }
    let folder = told("XDG_CONFIG_HOME").or_else(|| Some(told("HOME")?.join(".config")));
    Ok(folder.ok_or(ProfileError::Homeless)?.join("bixi/profiles.json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_are_kept_where_only_their_owner_reads_them() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/profiles.json");
        assert_eq!(Profiles::read(&path).unwrap(), Profiles::default());
        let mut profiles = Profiles::default();
        let secret = Some("S".to_owned());
        profiles.add("a", Profile { access_key_secret: secret, ..Profile::default() });
        profiles.add("b", Profile::default());
        profiles.write(&path).unwrap();
        profiles.write(&path).unwrap();
        assert_eq!(Profiles::read(&path).unwrap(), profiles);
        assert_eq!(profiles.current.as_deref(), Some("a"));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        assert!(!format!("{profiles:?}").contains("\"S\""));

        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(Profiles::read(&path), Err(ProfileError::Readable(_))));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "{\"colour\":1}").unwrap();
        assert!(matches!(Profiles::read(&path), Err(ProfileError::Damaged { .. })));
    }
}
