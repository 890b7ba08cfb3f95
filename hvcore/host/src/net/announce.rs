//! Telling the network where a guest's MAC address is now.
//!
//! A reverse ARP request (RFC 903) names only the MAC address, so the host need not know the
//! guest's IP address, and it changes nobody's ARP cache: the address pair stays what it was. What changes
//! are the switches' tables, which learn from the frame's source.
//!
//! Rejected: a gratuitous ARP on the guest's behalf, which needs its addresses snooped from its traffic
//! and is wrong when it has several.

/// Ethernet address of all stations.
const BROADCAST: [u8; 6] = [0xff; 6];

/// Moments of the announcements, in nanoseconds after the first: a switch that lost one learns from
/// the next.
pub(crate) const REPEATS_NS: [u64; 4] = [0, 50_000_000, 150_000_000, 300_000_000];

/// Shortest Ethernet frame without its checksum (IEEE 802.3, 4A.2.3.2.4).
const MIN_FRAME: usize = 60;

/// EtherType of reverse ARP (RFC 903).
const RARP: u16 = 0x8035;

/// A broadcast from `mac`.
pub(crate) fn frame(mac: [u8; 6]) -> [u8; MIN_FRAME] {
    let mut frame = [0; MIN_FRAME];
    frame[0..6].copy_from_slice(&BROADCAST);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&RARP.to_be_bytes());
    // Hardware type Ethernet, protocol IPv4, address lengths, operation 3 "request reverse".
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

/// Whether a frame is such an announcement of `mac`.
pub(crate) fn announces(frame_seen: &[u8], mac: [u8; 6]) -> bool {
    frame_seen.get(..MIN_FRAME) == Some(&frame(mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_recognized_for_its_own_address_only() {
        let mac = [2, 0xe1, 0xab, 0x10, 0, 1];
        assert!(announces(&frame(mac), mac));
        assert!(!announces(&frame([2, 0xe1, 0xab, 0x10, 0, 2]), mac));
        assert!(!announces(&[0; 20], mac));
    }
}
