//! The cloud as a service of this machine.

use super::{Init, try_to_ask};
use crate::failure::Failure;
use crate::profile::Profile;
use crate::systemd::{self, Settings};
use bixi_api::operator::OperatorClient;
use bixi_release::product::{CLOUD_UNIT, USERS};
use std::fs;
use std::io;
use std::path::Path;

const SETTINGS: Settings =
    Settings { path: "/etc/bixi/cloud.env", variable: "BIXI_CLOUD_ARGUMENTS" };
/// The state's directory that the unit makes and hands to its user.
const STATE: &str = "/var/lib/bixi/cloud";
/// The unit's user.
const USER: &str = "bixi-cloud";

/// Lets the service run with these settings, and waits until it answers.
pub(super) async fn start(init: &Init) -> Result<(Profile, OperatorClient), Failure> {
    let users = systemd::file(USERS)?.display().to_string();
    let arguments = init.arguments();
    SETTINGS.write(&arguments)?;
    systemd::run("systemd-sysusers", &[&users]).await?;
    let other = init.state != Path::new(STATE);
    let state = init.state.display().to_string();
    if other {
        hand_over(&init.state, &state).await?;
    }
    let more = other.then(|| format!("[Service]\nReadWritePaths={state}\n"));
    systemd::add(CLOUD_UNIT, "state.conf", more.as_deref())?;
    systemd::start(CLOUD_UNIT, &arguments).await?;
    systemd::wait(CLOUD_UNIT, async || try_to_ask(init).await).await
}

/// Gives a state directory at another place to the unit's user.
async fn hand_over(path: &Path, name: &str) -> Result<(), Failure> {
    let failed = |e| Failure::system(format!("make {name}"), e);
    if !path.is_absolute() {
        return Err(Failure::Usage("give --state as an absolute path".to_owned()));
    }
    if !is_ours(path).map_err(failed)? {
        return Err(Failure::Usage(format!(
            "{name} has something else in it: give --state a directory of the cloud's own"
        )));
    }
    fs::create_dir_all(path).map_err(failed)?;
    systemd::run("chmod", &["0700", name]).await?;
    let owner = format!("{USER}:{USER}");
    systemd::run("chown", &["--recursive", "--no-dereference", &owner, name]).await.map(drop)
}

/// Whether a directory is absent, empty, or the state of a cloud.
fn is_ours(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        entries => Ok(path.join("cloud.redb").exists() || entries?.next().is_none()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_others_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        assert!(is_ours(&folder.path().join("none")).unwrap());
        assert!(is_ours(folder.path()).unwrap());
        fs::write(folder.path().join("passwd"), "").unwrap();
        assert!(!is_ours(folder.path()).unwrap());
        fs::write(folder.path().join("cloud.redb"), "").unwrap();
        assert!(is_ours(folder.path()).unwrap());
    }
}
