//! Who uses the cloud, by which keys, and how much of it.

use super::fields::record;

record! {
    /// A tenant. It has a VPC of its own from the beginning.
    pub struct Tenant / TenantState {
        /// Its id: `t-…`.
        1 id: String as String [string];
        /// What the operator calls it; unique.
        2 name: String as String [string];
        /// When it was made, in milliseconds since 1970.
        3 created: u64 as u64 [uint64];
        /// How much it may use.
        4 quota: Quota as Option<QuotaState> [message, optional];
        /// The VPC that it was made with.
        5 default_vpc: String as String [string];
        /// The vSwitch of that VPC.
        6 default_vswitch: String as String [string];
        /// The security group of that VPC.
        7 default_group: String as String [string];
        /// Its account number, as ECS shows owners.
        8 account: u64 as u64 [uint64];
        /// Grows with every change of what it uses: two creations at once are counted one after the other.
        9 generation: u64 as u64 [uint64];
    }
}

record! {
    /// How much a tenant may have at once.
    pub struct Quota / QuotaState {
        /// Instances.
        1 instances: u64 as u64 [uint64];
        /// vCPUs of all instances.
        2 vcpus: u64 as u64 [uint64];
        /// Memory of all instances in MiB.
        3 memory_mib: u64 as u64 [uint64];
        /// Disks.
        4 disks: u64 as u64 [uint64];
        /// Size of all disks in GiB.
        5 disk_gib: u64 as u64 [uint64];
    }
}

impl Default for Quota {
    fn default() -> Self {
        Self { instances: 20, vcpus: 100, memory_mib: 400 << 10, disks: 100, disk_gib: 10_000 }
    }
}

record! {
    /// A key by which a tenant's programs sign their requests.
    pub struct AccessKey / AccessKeyState {
        /// The public half: `LTAI…`.
        1 id: String as String [string];
        /// The secret half.
        2 secret: String as String [string];
        /// Whose it is.
        3 tenant: String as String [string];
        /// When it was made, in milliseconds since 1970.
        4 created: u64 as u64 [uint64];
        /// Whether requests signed with it are taken.
        5 enabled: bool as bool [bool];
    }
}

record! {
    /// What was answered to a request with a ClientToken: the same request again is answered with the same.
    pub struct ClientToken / ClientTokenState {
        /// Whose request it was.
        1 tenant: String as String [string];
        /// Which action.
        2 action: String as String [string];
        /// The token.
        3 token: String as String [string];
        /// SHA-256 over the request's other parameters, in hexadecimal.
        4 fingerprint: String as String [string];
        /// The ids that the answer named.
        5 answer: Vec<String> as Vec<String> [string, repeated];
        /// When, in milliseconds since 1970.
        6 created: u64 as u64 [uint64];
    }
}

impl ClientToken {
    /// The key of a tenant's token for an action. Tokens may hold any character.
    pub fn key(tenant: &str, action: &str, token: &str) -> String {
        let mut key = format!("{tenant}.{action}.");
        for byte in token.bytes() {
            match byte {
                b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => key.push(char::from(byte)),
                other => key.push_str(&format!("_{other:02x}")),
            }
        }
        key
    }
}
