//! Data types of NFS version 3 (RFC 1813 sections 2.5 and 2.6).

use alloc::vec::Vec;
use core::fmt;

use crate::xdr::{self, Decode, Decoder, Encode, Malformed, xdr_bytes, xdr_enum, xdr_struct};

/// Longest file handle (`NFS3_FHSIZE`).
pub const MAX_HANDLE: usize = 64;
/// Longest file name that is decoded. Longer than any file system takes, so that a server can answer
/// `NameTooLong` instead of calling the message garbage.
pub const MAX_NAME: usize = 1024;
/// Longest path of a symbolic link or mount.
pub const MAX_PATH: usize = 4096;

/// Names a file on a server; opaque to clients. Kept inline, since handles are copied often.
#[derive(Clone, Copy)]
pub struct FileHandle {
    length: u8,
    bytes: [u8; MAX_HANDLE],
}

impl FileHandle {
    /// A handle of these bytes; none if they are more than [`MAX_HANDLE`].
    pub fn new(handle: &[u8]) -> Option<Self> {
        let mut bytes = [0; MAX_HANDLE];
        bytes.get_mut(..handle.len())?.copy_from_slice(handle);
        Some(Self {
            length: handle.len() as u8,
            bytes,
        })
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

impl PartialEq for FileHandle {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for FileHandle {}

impl core::hash::Hash for FileHandle {
    fn hash<H: core::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl fmt::Debug for FileHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes()
            .iter()
            .try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Encode for FileHandle {
    fn encode(&self, out: &mut Vec<u8>) {
        xdr::put_opaque(out, self.as_bytes());
    }
}

impl Decode<'_> for FileHandle {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        let bytes = input.opaque(MAX_HANDLE)?;
        Ok(Self::new(bytes).expect("the decoder limits it to MAX_HANDLE"))
    }
}

xdr_bytes!(
    /// Name of a file in a directory (`filename3`).
    Name, MAX_NAME
);
xdr_bytes!(
    /// A path (`nfspath3`, `dirpath`).
    Path, MAX_PATH
);
xdr_bytes!(
    /// Contents of a READ or WRITE.
    Data, crate::MAX_DATA
);

/// Tells instances of a server apart that may have lost unstable writes (`writeverf3`).
pub type WriteVerifier = [u8; 8];
/// Tells states of a directory apart between which cookies do not hold (`cookieverf3`).
pub type CookieVerifier = [u8; 8];
/// Makes an exclusive CREATE repeatable (`createverf3`).
pub type CreateVerifier = [u8; 8];

xdr_enum!(
    /// Why a procedure failed (`nfsstat3`; success is the `Ok` of [`NfsResult`]).
    Status as "nfsstat3" {
        /// The caller does not own the file.
        Perm = 1,
        /// There is no such file.
        NoEnt = 2,
        /// An I/O error of the disk.
        Io = 5,
        /// There is no such device.
        NxIo = 6,
        /// The caller has no permission.
        Acces = 13,
        /// The file exists.
        Exist = 17,
        /// A hard link between file systems.
        XDev = 18,
        /// There is no such device.
        NoDev = 19,
        /// Not a directory.
        NotDir = 20,
        /// A directory.
        IsDir = 21,
        /// An argument is not valid or not supported.
        Inval = 22,
        /// The file is too large.
        FBig = 27,
        /// No space is left.
        NoSpc = 28,
        /// The file system is read-only.
        RoFs = 30,
        /// Too many hard links.
        MLink = 31,
        /// The name is too long.
        NameTooLong = 63,
        /// The directory is not empty.
        NotEmpty = 66,
        /// The user's quota is used up.
        DQuot = 69,
        /// The file of this handle is gone, or the lease that the handle stands for.
        Stale = 70,
        /// Too many levels of remote in the path.
        Remote = 71,
        /// The file handle is not one of this server.
        BadHandle = 10001,
        /// The guard of SETATTR does not match.
        NotSync = 10002,
        /// The cookie of READDIR is stale.
        BadCookie = 10003,
        /// The operation is not supported.
        NotSupp = 10004,
        /// The buffer is too small for a single item.
        TooSmall = 10005,
        /// An error that no other value names.
        ServerFault = 10006,
        /// The type of the object is not supported.
        BadType = 10007,
        /// Try again later.
        Jukebox = 10008,
    }
);

/// A status other than success, and the part of the reply that comes with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<F> {
    /// Why.
    pub status: Status,
    /// What the reply holds nevertheless.
    pub body: F,
}

/// Result of an NFS procedure.
pub type NfsResult<T, F> = Result<T, Failure<F>>;

impl<T: Encode, F: Encode> Encode for NfsResult<T, F> {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Ok(body) => {
                0u32.encode(out);
                body.encode(out);
            }
            Err(Failure { status, body }) => {
                status.encode(out);
                body.encode(out);
            }
        }
    }
}

impl<'a, T: Decode<'a>, F: Decode<'a>> Decode<'a> for NfsResult<T, F> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed> {
        Ok(match input.get()? {
            0 => Ok(input.get()?),
            status => Err(Failure {
                status: Status::from_wire(status)?,
                body: input.get()?,
            }),
        })
    }
}

xdr_enum!(
    /// Type of a file (`ftype3`).
    FileType as "ftype3" {
        /// Regular file.
        Regular = 1,
        /// Directory.
        Directory = 2,
        /// Block device.
        Block = 3,
        /// Character device.
        Character = 4,
        /// Symbolic link.
        Symlink = 5,
        /// Socket.
        Socket = 6,
        /// Named pipe.
        Fifo = 7,
    }
);

xdr_struct!(
    /// A point in time since 1970 (`nfstime3`).
    #[derive(Copy, Default, PartialOrd, Ord)]
    Time {
        /// Seconds.
        seconds: u32,
        /// Nanoseconds.
        nanoseconds: u32,
    }
);

xdr_struct!(
    /// Number of a device (`specdata3`).
    #[derive(Copy, Default)]
    Device {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    }
);

xdr_struct!(
    /// Attributes of a file (`fattr3`).
    #[derive(Copy)]
    Attributes {
        /// Type.
        kind: FileType,
        /// Permission bits.
        mode: u32,
        /// Hard links.
        nlink: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// Bytes.
        size: u64,
        /// Bytes of disk that it takes.
        used: u64,
        /// Of a device file.
        device: Device,
        /// File system.
        fsid: u64,
        /// Number within the file system.
        fileid: u64,
        /// Last access.
        atime: Time,
        /// Last change of the contents.
        mtime: Time,
        /// Last change of contents or attributes.
        ctime: Time,
    }
);

/// Attributes that a reply holds when the server could get them (`post_op_attr`).
pub type PostOp = Option<Attributes>;

xdr_struct!(
    /// Attributes by which a client sees whether its cache was current (`wcc_attr`).
    #[derive(Copy)]
    WccAttributes {
        /// Bytes.
        size: u64,
        /// Last change of the contents.
        mtime: Time,
        /// Last change of contents or attributes.
        ctime: Time,
    }
);

impl From<&Attributes> for WccAttributes {
    fn from(attributes: &Attributes) -> Self {
        Self {
            size: attributes.size,
            mtime: attributes.mtime,
            ctime: attributes.ctime,
        }
    }
}

xdr_struct!(
    /// Weak cache consistency: attributes before and after a change (`wcc_data`).
    #[derive(Copy, Default)]
    Wcc {
        /// Before.
        before: Option<WccAttributes>,
        /// After.
        after: PostOp,
    }
);

/// How SETATTR shall set a time (`set_atime`, `set_mtime`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    #[default]
    Keep,
    /// To the server's clock.
    Now,
    /// To this.
    To(Time),
}

impl Encode for SetTime {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Keep => 0u32.encode(out),
            Self::Now => 1u32.encode(out),
            Self::To(time) => {
                2u32.encode(out);
                time.encode(out);
            }
        }
    }
}

impl Decode<'_> for SetTime {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        match input.get()? {
            0 => Ok(Self::Keep),
            1 => Ok(Self::Now),
            2 => Ok(Self::To(input.get()?)),
            value => Err(Malformed::BadValue {
                what: "time_how",
                value,
            }),
        }
    }
}

xdr_struct!(
    /// Attributes to set; what is `None` stays (`sattr3`).
    #[derive(Copy, Default)]
    SetAttributes {
        /// Permission bits.
        mode: Option<u32>,
        /// Owner.
        uid: Option<u32>,
        /// Group.
        gid: Option<u32>,
        /// Bytes.
        size: Option<u64>,
        /// Last access.
        atime: SetTime,
        /// Last change of the contents.
        mtime: SetTime,
    }
);

xdr_struct!(
    /// A name in a directory (`diropargs3`).
    #[derive(Copy)]
    DirEntry<'a> {
        /// The directory.
        dir: FileHandle,
        /// The name.
        name: Name<'a>,
    }
);

xdr_enum!(
    /// What a WRITE promises when it is answered (`stable_how`). Ordered: more is safer.
    #[derive(PartialOrd, Ord)]
    Stability as "stable_how" {
        /// Nothing until COMMIT.
        Unstable = 0,
        /// The data, and what is needed to read it, is on disk.
        DataSync = 1,
        /// Data and all attributes are on disk.
        FileSync = 2,
    }
);
