//! Names, addresses and MAC addresses of a lab. All lie in 198.18.0.0/15, the range set aside for tests of
//! network equipment (RFC 2544, appendix C.2.2), and exist inside the switch only.

use std::net::{Ipv4Addr, SocketAddrV4};

use switch::{Direction, NetworkConfig};

/// The networks in the order of a host's cards.
pub const NETWORKS: [Network; 3] = [MANAGEMENT, STORAGE, SESSION];
/// Control, heartbeat, migration.
pub const MANAGEMENT: Network = Network {
    name: "mgmt",
    number: 0,
    mtu: 9000,
};
/// NFS.
pub const STORAGE: Network = Network {
    name: "storage",
    number: 1,
    mtu: 9000,
};
/// The guests' own.
pub const SESSION: Network = Network {
    name: "session",
    number: 2,
    mtu: 1500,
};
/// All networks have prefixes of this length.
pub const PREFIX: u8 = 24;
/// Port of the NFS server.
pub const NFS_PORT: u16 = 2049;
/// The lab has room for so many hosts.
pub const MAX_HOSTS: u8 = 16;

/// A network of the lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Name in commands and events.
    pub name: &'static str,
    /// Third byte of its addresses.
    number: u8,
    /// Longest IP packet.
    pub mtu: usize,
}

impl Network {
    /// What the switch needs to know.
    #[must_use]
    pub fn config(self) -> NetworkConfig {
        NetworkConfig {
            name: self.name.into(),
            mtu: self.mtu,
        }
    }

    /// The lab's own address: client, NFS server, or control.
    #[must_use]
    pub fn lab_address(self) -> Ipv4Addr {
        self.address(1)
    }

    /// The address of the probes, which have an endpoint of their own.
    #[must_use]
    pub fn probe_address(self) -> Ipv4Addr {
        self.address(2)
    }

    /// The address of a host, counted from 1.
    #[must_use]
    pub fn host_address(self, host: u8) -> Ipv4Addr {
        self.address(10 + host)
    }

    /// The address of a guest, counted from 1.
    #[must_use]
    pub fn guest_address(self, guest: u8) -> Ipv4Addr {
        self.address(100 + guest)
    }

    fn address(self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, last)
    }

    /// MAC address of a host's card.
    #[must_use]
    pub fn host_mac(self, host: u8) -> [u8; 6] {
        [0x02, 0xe1, 0xab, self.number, 0x00, host]
    }

    /// MAC address of an endpoint of the lab.
    #[must_use]
    pub fn endpoint_mac(self, endpoint: u8) -> [u8; 6] {
        [0x02, 0xe1, 0xab, self.number, 0xff, endpoint]
    }
}

/// MAC address of a guest, counted from 1.
#[must_use]
pub fn guest_mac(guest: u8) -> [u8; 6] {
    [0x02, 0xe1, 0xab, 0x10, 0x00, guest]
}

/// Where a host's control service listens.
#[must_use]
pub fn control_service(host: u8) -> SocketAddrV4 {
    SocketAddrV4::new(MANAGEMENT.host_address(host), host_protocol::PORT)
}

/// A directed link, as commands write it: `h1:mgmt>` is what host 1 sends there, `h1:mgmt<` what it receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkName {
    /// A host, or an endpoint of the lab.
    pub port: String,
    /// The network.
    pub network: String,
    /// One direction, or both when the name ends without an arrow.
    pub directions: Vec<Direction>,
}

impl std::str::FromStr for LinkName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, directions) = match text.strip_suffix('>') {
            Some(name) => (name, vec![Direction::Sending]),
            None => match text.strip_suffix('<') {
                Some(name) => (name, vec![Direction::Receiving]),
                None => (text, vec![Direction::Sending, Direction::Receiving]),
            },
        };
        let bad = || {
            format!(
                "\"{text}\" is no link: write <host>:<network>, then > for what it sends, < for what it receives, nothing for both; for instance h1:mgmt>"
            )
        };
        let (port, network) = name.split_once(':').ok_or_else(bad)?;
        if port.is_empty() || network.is_empty() {
            return Err(bad());
        }
        if !NETWORKS.iter().any(|known| known.name == network) {
            return Err(format!(
                "there is no network \"{network}\"; the networks are mgmt, storage and session"
            ));
        }
        Ok(Self {
            port: port.into(),
            network: network.into(),
            directions,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_and_nonsense_is_explained() {
        let link: LinkName = "h1:mgmt>".parse().unwrap();
        assert_eq!((link.port.as_str(), link.network.as_str()), ("h1", "mgmt"));
        assert_eq!(link.directions, [Direction::Sending]);
        assert_eq!(
            "h1:mgmt<".parse::<LinkName>().unwrap().directions,
            [Direction::Receiving]
        );
        assert_eq!("h1:mgmt".parse::<LinkName>().unwrap().directions.len(), 2);
        for text in ["", "h1", ":mgmt", "h1:", ">", "h1:mgmt>>"] {
            assert!(text.parse::<LinkName>().is_err(), "{text}");
        }
        assert!(
            "h1:wan>"
                .parse::<LinkName>()
                .unwrap_err()
                .contains("storage")
        );
    }

    #[test]
    fn addresses_are_the_documented_ones() {
        assert_eq!(MANAGEMENT.host_address(1).to_string(), "198.18.0.11");
        assert_eq!(STORAGE.lab_address().to_string(), "198.18.1.1");
        assert_eq!(SESSION.guest_address(1).to_string(), "198.18.2.101");
        assert_eq!(SESSION.host_mac(2), [2, 0xe1, 0xab, 2, 0, 2]);
    }
}
