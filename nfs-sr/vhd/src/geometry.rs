//! Cylinders, heads and sectors: some readers take the size of a disk from them.

/// Geometry of a disk as an ATA disk would have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Cylinders.
    pub cylinders: u16,
    /// Heads.
    pub heads: u8,
    /// Sectors per track.
    pub sectors: u8,
}

impl Geometry {
    /// The geometry that the specification's appendix computes for a size.
    pub fn for_bytes(bytes: u64) -> Self {
        let sectors = (bytes / 512).min(65535 * 16 * 255);
        let (per_track, heads, tracks);
        if sectors >= 65535 * 16 * 63 {
            (per_track, heads, tracks) = (255, 16, sectors / 255);
        } else {
            let small = sectors / 17;
            let wanted = small.div_ceil(1024).max(4);
            if small < wanted * 1024 && wanted <= 16 {
                (per_track, heads, tracks) = (17, wanted, small);
            } else if sectors / 31 < 16 * 1024 {
                (per_track, heads, tracks) = (31, 16, sectors / 31);
            } else {
                (per_track, heads, tracks) = (63, 16, sectors / 63);
            }
        }
        Self {
            cylinders: (tracks / heads) as u16,
            heads: heads as u8,
            sectors: per_track as u8,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_geometries() {
        let chs = |mib: u64| {
            let g = Geometry::for_bytes(mib << 20);
            (g.cylinders, g.heads, g.sectors)
        };
        assert_eq!(chs(16), (481, 4, 17));
        assert_eq!(chs(2 << 20), (65535, 16, 255));
    }
}
