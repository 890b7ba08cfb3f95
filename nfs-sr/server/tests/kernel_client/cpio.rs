//! The "newc" form of cpio archives, as Linux unpacks them (Documentation/driver-api/early-userspace/buffer-format.rst).

/// An archive in the making.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    /// Adds a directory.
    pub fn directory(&mut self, name: &str) {
        self.entry(name, 0o040_755, &[], (0, 0));
    }

    /// Adds a file that can be executed.
    pub fn file(&mut self, name: &str, contents: &[u8]) {
        self.entry(name, 0o100_755, contents, (0, 0));
    }

    /// Adds the console's device file, which the first process needs before it can make one.
    pub fn console(&mut self, name: &str) {
        self.entry(name, 0o020_600, &[], (5, 1));
    }

    /// Ends the archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[], (0, 0));
        self.bytes
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8], device: (u32, u32)) {
        self.entries += 1;
        let (size, name_size) = (contents.len() as u32, name.len() as u32 + 1);
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size,
            0,
            0,
            device.0,
            device.1,
            name_size,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08X}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
