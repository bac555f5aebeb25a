//! The names of a segment's hosts, as the card's DNS server knows them.
//!
//! Invariants: names are kept in lower case and without the domain; a name that only stands above others exists and has
//! no address (RFC 8020); an address has one name, the first it was given. Part of the [view](super::view): made by the
//! driver, never changed afterwards, asked by [`crate::answer::dns`].

use super::view::mask;
use std::collections::HashMap;
use std::net::Ipv4Addr;

/// What is known of a name or an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known<T> {
    /// It is this.
    Yes(T),
    /// It is nobody's, and nobody else can know better.
    Nobody,
    /// It is not for this segment to say.
    NotOurs,
}

/// The names of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Names {
    servers: Vec<Ipv4Addr>,
    domain: Option<String>,
    network: (Ipv4Addr, Ipv4Addr),
    addresses: HashMap<String, Vec<Ipv4Addr>>,
    names: HashMap<Ipv4Addr, String>,
}

impl Names {
    /// No names, but a server for them at these addresses. `network` and `prefix_len` say whose addresses it may deny.
    pub fn new(
        servers: Vec<Ipv4Addr>,
        domain: Option<&str>,
        network: Ipv4Addr,
        prefix_len: u8,
    ) -> Self {
        Self {
            servers,
            domain: domain.map(str::to_ascii_lowercase),
            network: (network, mask(prefix_len)),
            addresses: HashMap::new(),
            names: HashMap::new(),
        }
    }

    /// Adds an address of a name; returns how many addresses the name has now.
    pub fn add(&mut self, name: &str, ipv4: Ipv4Addr) -> usize {
        let name = name.to_ascii_lowercase();
        let mut rest = name.as_str();
        while let Some((_, above)) = rest.split_once('.') {
            self.addresses.entry(above.to_owned()).or_default();
            rest = above;
        }
        self.names.entry(ipv4).or_insert_with(|| name.clone());
        let known = self.addresses.entry(name).or_default();
        if !known.contains(&ipv4) {
            known.push(ipv4);
        }
        known.len()
    }

    /// Where the card answers.
    pub fn servers(&self) -> &[Ipv4Addr] {
        &self.servers
    }

    /// The domain of the names, in lower case.
    pub fn domain(&self) -> Option<&str> {
        self.domain.as_deref()
    }

    /// Whether `name`, in lower case, is the domain or in it.
    pub fn in_domain(&self, name: &str) -> bool {
        self.without_domain(name).is_some()
    }

    /// A name without the domain; empty for the domain itself, none for a name outside of it.
    fn without_domain<'n>(&self, name: &'n str) -> Option<&'n str> {
        let rest = name.strip_suffix(self.domain.as_deref()?)?;
        if rest.is_empty() { Some(rest) } else { rest.strip_suffix('.') }
    }

    /// The addresses of a name, which is given in lower case, with the domain or without.
    pub fn addresses(&self, name: &str) -> Known<&[Ipv4Addr]> {
        if let Some(known) = self.addresses.get(name) {
            return Known::Yes(known);
        }
        match self.without_domain(name) {
            Some("") => Known::Yes(&[]),
            Some(plain) => match self.addresses.get(plain) {
                Some(known) => Known::Yes(known),
                None => Known::Nobody,
            },
            // A name of one label is a host's of this segment, or a mistake.
            None if !name.contains('.') => Known::Nobody,
            None => Known::NotOurs,
        }
    }

    /// The name of an address, without the domain.
    pub fn name(&self, ipv4: Ipv4Addr) -> Known<&str> {
        let (network, mask) = self.network;
        match self.names.get(&ipv4) {
            Some(name) => Known::Yes(name),
            None if ipv4 & mask == network => Known::Nobody,
            None => Known::NotOurs,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_known_with_and_without_the_domain() {
        let address = |n| Ipv4Addr::new(10, 0, 0, n);
        let mut names = Names::new(vec![], Some("Lab.internal"), address(0), 24);
        assert_eq!(names.add("Web", address(1)), 1);
        assert_eq!(names.add("web", address(2)), 2);
        assert_eq!(names.add("web", address(2)), 2);
        assert_eq!(names.add("a.b.c", address(1)), 1);
        assert_eq!(names.addresses("web"), Known::Yes(&[address(1), address(2)][..]));
        assert_eq!(names.addresses("web.lab.internal"), names.addresses("web"));
        assert_eq!(names.addresses("a.b.c.lab.internal"), Known::Yes(&[address(1)][..]));
        for empty in ["b.c", "c.lab.internal", "lab.internal"] {
            assert_eq!(names.addresses(empty), Known::Yes(&[][..]), "{empty}");
        }
        for nobody in ["x", "a.lab.internal", "xweb.lab.internal", "", "internal"] {
            assert_eq!(names.addresses(nobody), Known::Nobody, "{nobody}");
        }
        for other in ["web.xlab.internal", "web.", "example.com", "lab.internal.com"] {
            assert_eq!(names.addresses(other), Known::NotOurs, "{other}");
        }
        assert_eq!(names.name(address(1)), Known::Yes("web"));
        assert_eq!(names.name(address(9)), Known::Nobody);
        assert_eq!(names.name([10, 0, 1, 1].into()), Known::NotOurs);
        assert!(names.in_domain("lab.internal") && !names.in_domain("web"));
    }
}
