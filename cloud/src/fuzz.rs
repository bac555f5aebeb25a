//! One function per parser of untrusted bytes, for the fuzzer and for a test that gives each some thousands of inputs.
//! The tenants' API has its own in `ecs::fuzz`.

use crate::model::{Server, View, ids};
use crate::plan::{Context, observe};
use crate::store::{Change, Entry, Op};
use bixi_api::agent::{JoinRequest, JoinToken, Report};

/// A stored record of any kind: it is read or refused.
pub fn record(data: &[u8]) {
    let at = data.iter().position(|byte| *byte == b'\n').unwrap_or(data.len());
    let (key, value) = (data[..at].to_vec(), data[data.len().min(at + 1)..].to_vec());
    let entry = Entry { key: key.clone(), value, created: 1, modified: 1, lease: None };
    let mut view = View::default();
    if view.load(&entry).is_ok() {
        assert!(view.apply(&Change { key, entry: None }).is_ok());
    }
}

/// What an agent says: whatever it is, the plan fits into transactions.
pub fn agent(data: &[u8]) {
    let _ = serde_json::from_slice::<JoinRequest>(data);
    let _ = String::from_utf8_lossy(data).parse::<JoinToken>();
    let Ok(report) = serde_json::from_slice::<Report>(data) else { return };
    let (view, mut kernel) = (joined(), ids::Kernel);
    let mut context = Context { now: 1, ids: &mut kernel };
    for draft in observe::observe(&view, "s-1", &report, &mut context) {
        assert!(draft.into_txn().check().is_ok() || data.len() > 4096);
    }
}

fn joined() -> View {
    let server = Server {
        id: "s-1".to_owned(),
        name: "one".to_owned(),
        certificate_sha256: String::new(),
        joined: 1,
        schedulable: true,
        hardware: None,
        release: String::new(),
        next_certificate_sha256: None,
    };
    let mut draft = crate::model::Draft::default();
    draft.create(&server);
    let mut view = View::default();
    for op in draft.into_txn().ops {
        if let Op::Put { key, value, lease } = op {
            let _ = view.load(&Entry { key, value, created: 1, modified: 1, lease });
        }
    }
    view
}

/// The request for a server's certificate.
pub fn certificate_request(data: &[u8]) {
    let _ = rcgen::CertificateSigningRequestParams::from_der(&data.into());
}

/// A request's head: it passes or is answered.
pub fn head(data: &[u8]) {
    crate::tls::fuzz_head(data);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Record;

    #[test]
    fn thousands_of_inputs_do_no_harm() {
        let mut seed = 1u64;
        let mut byte = || {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as u8
        };
        let view = joined();
        let server = view.servers.get("s-1").unwrap();
        let stored = [Server::key("s-1"), b"\n".to_vec(), server.encode()].concat();
        let report = serde_json::to_vec(&crate::plan::simulation::report()).unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let request = rcgen::CertificateParams::default().serialize_request(&key).unwrap();
        for _ in 0..2000 {
            for (good, target) in [
                (stored.as_slice(), record as fn(&[u8])),
                (&report, agent),
                (request.der(), certificate_request),
                (b"GET /?Format=JSON&a=%20 HTTP/1.1\r\nHost: x\r\n\r\n", head),
            ] {
                let mut bad = good.to_vec();
                for _ in 0..=byte() % 4 {
                    let at = (usize::from(byte()) << 8 | usize::from(byte())) % bad.len();
                    bad[at] = byte();
                }
                target(&bad);
                target(&bad[..usize::from(byte()) % bad.len()]);
            }
        }
        record(&stored);
        agent(&report);
    }
}
