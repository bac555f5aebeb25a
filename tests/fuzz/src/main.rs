//! All fuzz targets in one program: `BIXI_FUZZ` says which one runs, or `list` prints their names.
//!
//! A target is a function of one of the product's crates, which tests run with pseudo-random input too. One program
//! instead of many: they are linked once, and code that a target does not reach costs nothing.

#![no_main]

use std::sync::OnceLock;

type Target = fn(&[u8]);

const TARGETS: &[(&str, Target)] = &[
    ("cli-answer", bixi_cli::fuzz::answer),
    ("cli-events", bixi_cli::fuzz::events),
    ("cloud-record", bixi_cloud::fuzz::record),
    ("cloud-agent", bixi_cloud::fuzz::agent),
    ("cloud-certificate-request", bixi_cloud::fuzz::certificate_request),
    ("cloud-request-head", bixi_cloud::fuzz::head),
    ("ecs-signature-version-1", bixi_cloud::ecs::fuzz::signature_version_1),
    ("ecs-signature-acs3", bixi_cloud::ecs::fuzz::signature_acs3),
    ("ecs-parameters", bixi_cloud::ecs::fuzz::parameters),
    ("ecs-xml", bixi_cloud::ecs::fuzz::xml),
    ("ring", bixi_offload::ring::fuzz::ring),
    ("vhost-user-codec", bixi_offload::vhost_user::fuzz::codec),
    ("vhost-user-session", bixi_offload::vhost_user::fuzz::session),
    ("vhost-user-session-state", bixi_offload::vhost_user::fuzz::session_state),
    ("front-session", bixi_offload::frontend::fuzz::front_session),
    ("front-state", bixi_offload::frontend::fuzz::front_state),
    ("pci-accesses", bixi_compute::pci::fuzz::pci_accesses),
    ("pci-state", bixi_compute::pci::fuzz::pci_state),
    ("virtio-accesses", bixi_compute::virtio::fuzz::virtio_accesses),
    ("virtio-state", bixi_compute::virtio::fuzz::virtio_state),
    ("image-qcow2-header", bixi_image::fuzz::qcow2_header),
    ("image-qcow2", bixi_image::fuzz::qcow2_image),
    ("image-manifest", bixi_image::fuzz::manifest),
    ("network-frame", bixi_network::fuzz::frame),
    ("network-offload", bixi_network::fuzz::offload),
    ("network-arp", bixi_network::fuzz::arp),
    ("network-dhcp", bixi_network::fuzz::dhcp),
    ("network-dns", bixi_network::fuzz::dns),
    ("network-metadata-request", bixi_network::fuzz::metadata_request),
    ("network-metadata-packets", bixi_network::fuzz::metadata_packets),
    ("network-vxlan", bixi_network::fuzz::vxlan),
    ("network-record", bixi_network::fuzz::record),
    ("release-bundle", bixi_release::fuzz::bundle),
];

static CHOSEN: OnceLock<Target> = OnceLock::new();

/// Reads `BIXI_FUZZ`; ends the program if there is nothing to fuzz.
fn choose() {
    let name = std::env::var("BIXI_FUZZ").unwrap_or_default();
    if name == "list" {
        for (name, _) in TARGETS {
            println!("{name}");
        }
        std::process::exit(0);
    }
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => {
            // libFuzzer initializes once.
            let _ = CHOSEN.set(*target);
        }
        None => {
            eprintln!("BIXI_FUZZ={name:?} is no target; `list` prints them");
            std::process::exit(2);
        }
    }
}

libfuzzer_sys::fuzz_target!(init: { choose() }, |data: &[u8]| {
    if let Some(target) = CHOSEN.get() {
        target(data);
    }
});
