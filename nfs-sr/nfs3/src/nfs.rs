//! The NFS program, version 3 (RFC 1813 section 3): arguments and results of its 22 procedures.

use alloc::vec::Vec;

use crate::{
    rpc::procedures,
    types::*,
    xdr::{Decode, Decoder, Encode, List, Malformed, xdr_struct},
};

/// Program number.
pub const PROGRAM: u32 = 100_003;
/// Version.
pub const VERSION: u32 = 3;

procedures!(PROGRAM, VERSION, {
    /// Does nothing; tells that the server is there.
    Null = 0: () => (),
    /// Attributes of a file.
    GetAttr = 1: FileHandle => NfsResult<Attributes, ()>,
    /// Sets attributes.
    SetAttr = 2: SetAttrArgs => NfsResult<Wcc, Wcc>,
    /// Finds a name in a directory.
    Lookup = 3: DirEntry<'a> => NfsResult<LookupOk, PostOp>,
    /// Asks what the caller may do.
    Access = 4: AccessArgs => NfsResult<AccessOk, PostOp>,
    /// Where a symbolic link points.
    ReadLink = 5: FileHandle => NfsResult<ReadLinkOk<'a>, PostOp>,
    /// Reads from a file.
    Read = 6: ReadArgs => NfsResult<ReadOk<'a>, PostOp>,
    /// Writes to a file.
    Write = 7: WriteArgs<'a> => NfsResult<WriteOk, Wcc>,
    /// Creates a regular file.
    Create = 8: CreateArgs<'a> => NfsResult<Created, Wcc>,
    /// Creates a directory.
    MkDir = 9: MkDirArgs<'a> => NfsResult<Created, Wcc>,
    /// Creates a symbolic link.
    SymLink = 10: SymLinkArgs<'a> => NfsResult<Created, Wcc>,
    /// Creates a special file.
    MkNod = 11: MkNodArgs<'a> => NfsResult<Created, Wcc>,
    /// Removes a name that is not a directory's.
    Remove = 12: DirEntry<'a> => NfsResult<Wcc, Wcc>,
    /// Removes a directory.
    RmDir = 13: DirEntry<'a> => NfsResult<Wcc, Wcc>,
    /// Renames.
    Rename = 14: RenameArgs<'a> => NfsResult<RenameWcc, RenameWcc>,
    /// Creates a hard link.
    Link = 15: LinkArgs<'a> => NfsResult<LinkBody, LinkBody>,
    /// Lists a directory.
    ReadDir = 16: ReadDirArgs => NfsResult<ReadDirOk<'a>, PostOp>,
    /// Lists a directory with attributes and handles.
    ReadDirPlus = 17: ReadDirPlusArgs => NfsResult<ReadDirPlusOk<'a>, PostOp>,
    /// How full the file system is.
    FsStat = 18: FileHandle => NfsResult<FsStatOk, PostOp>,
    /// What the server can do.
    FsInfo = 19: FileHandle => NfsResult<FsInfoOk, PostOp>,
    /// Limits of names and links.
    PathConf = 20: FileHandle => NfsResult<PathConfOk, PostOp>,
    /// Makes unstable writes durable.
    Commit = 21: CommitArgs => NfsResult<CommitOk, Wcc>,
});

xdr_struct!(
    /// Arguments of SETATTR.
    #[derive(Copy)]
    SetAttrArgs {
        /// The file.
        object: FileHandle,
        /// What to set.
        attributes: SetAttributes,
        /// Do it only if this is the file's ctime.
        guard: Option<Time>,
    }
);

xdr_struct!(
    /// Result of LOOKUP.
    #[derive(Copy)]
    LookupOk {
        /// What the name stands for.
        object: FileHandle,
        /// Its attributes.
        attributes: PostOp,
        /// The directory's attributes.
        dir_attributes: PostOp,
    }
);

/// Bits of ACCESS (RFC 1813 section 3.3.4).
pub mod access {
    /// Read data or list a directory.
    pub const READ: u32 = 0x01;
    /// Look up a name in a directory.
    pub const LOOKUP: u32 = 0x02;
    /// Rewrite data or change directory entries.
    pub const MODIFY: u32 = 0x04;
    /// Append data or add directory entries.
    pub const EXTEND: u32 = 0x08;
    /// Delete a directory entry.
    pub const DELETE: u32 = 0x10;
    /// Execute a file.
    pub const EXECUTE: u32 = 0x20;
}

xdr_struct!(
    /// Arguments of ACCESS.
    #[derive(Copy)]
    AccessArgs {
        /// The file.
        object: FileHandle,
        /// Bits of [`access`] that are asked for.
        access: u32,
    }
);

xdr_struct!(
    /// Result of ACCESS.
    #[derive(Copy)]
    AccessOk {
        /// The file's attributes.
        attributes: PostOp,
        /// Bits of [`access`] that are granted.
        access: u32,
    }
);

xdr_struct!(
    /// Result of READLINK.
    ReadLinkOk<'a> {
        /// The link's attributes.
        attributes: PostOp,
        /// Where it points.
        target: Path<'a>,
    }
);

xdr_struct!(
    /// Arguments of READ.
    #[derive(Copy)]
    ReadArgs {
        /// The file.
        file: FileHandle,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        count: u32,
    }
);

xdr_struct!(
    /// Result of READ.
    ReadOk<'a> {
        /// The file's attributes.
        attributes: PostOp,
        /// Bytes read.
        count: u32,
        /// The read reached the end of the file.
        eof: bool,
        /// The bytes.
        data: Data<'a>,
    }
);

xdr_struct!(
    /// Arguments of WRITE.
    WriteArgs<'a> {
        /// The file.
        file: FileHandle,
        /// First byte.
        offset: u64,
        /// Number of bytes; more or less data than that is malformed.
        count: u32,
        /// What the reply shall promise.
        stable: Stability,
        /// The bytes.
        data: Data<'a>,
    }
);

xdr_struct!(
    /// Result of WRITE.
    #[derive(Copy)]
    WriteOk {
        /// The file before and after.
        wcc: Wcc,
        /// Bytes written.
        count: u32,
        /// What is promised, at least what was asked for.
        committed: Stability,
        /// Of this instance of the server.
        verifier: WriteVerifier,
    }
);

/// How CREATE deals with a file that exists (`createhow3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CreateHow {
    /// Take the one that exists.
    Unchecked(SetAttributes),
    /// Fail.
    Guarded(SetAttributes),
    /// Fail unless this very request created it.
    Exclusive(CreateVerifier),
}

impl Encode for CreateHow {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Unchecked(attributes) => {
                0u32.encode(out);
                attributes.encode(out);
            }
            Self::Guarded(attributes) => {
                1u32.encode(out);
                attributes.encode(out);
            }
            Self::Exclusive(verifier) => {
                2u32.encode(out);
                verifier.encode(out);
            }
        }
    }
}

impl Decode<'_> for CreateHow {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        match input.get()? {
            0 => Ok(Self::Unchecked(input.get()?)),
            1 => Ok(Self::Guarded(input.get()?)),
            2 => Ok(Self::Exclusive(input.get()?)),
            value => Err(Malformed::BadValue {
                what: "createmode3",
                value,
            }),
        }
    }
}

xdr_struct!(
    /// Arguments of CREATE.
    #[derive(Copy)]
    CreateArgs<'a> {
        /// Where.
        place: DirEntry<'a>,
        /// How.
        how: CreateHow,
    }
);

xdr_struct!(
    /// Arguments of MKDIR.
    #[derive(Copy)]
    MkDirArgs<'a> {
        /// Where.
        place: DirEntry<'a>,
        /// With these attributes.
        attributes: SetAttributes,
    }
);

xdr_struct!(
    /// Arguments of SYMLINK.
    #[derive(Copy)]
    SymLinkArgs<'a> {
        /// Where.
        place: DirEntry<'a>,
        /// With these attributes.
        attributes: SetAttributes,
        /// Where it shall point.
        target: Path<'a>,
    }
);

/// The special file that MKNOD creates (`mknoddata3`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecialFile {
    /// Character device.
    Character(SetAttributes, Device),
    /// Block device.
    Block(SetAttributes, Device),
    /// Socket.
    Socket(SetAttributes),
    /// Named pipe.
    Fifo(SetAttributes),
    /// A type that MKNOD cannot create; to be answered with `BadType`.
    NotSpecial(FileType),
}

impl Encode for SpecialFile {
    fn encode(&self, out: &mut Vec<u8>) {
        let kind = match self {
            Self::Character(..) => FileType::Character,
            Self::Block(..) => FileType::Block,
            Self::Socket(_) => FileType::Socket,
            Self::Fifo(_) => FileType::Fifo,
            Self::NotSpecial(kind) => *kind,
        };
        kind.encode(out);
        match self {
            Self::Character(attributes, device) | Self::Block(attributes, device) => {
                attributes.encode(out);
                device.encode(out);
            }
            Self::Socket(attributes) | Self::Fifo(attributes) => attributes.encode(out),
            Self::NotSpecial(_) => {}
        }
    }
}

impl Decode<'_> for SpecialFile {
    fn decode(input: &mut Decoder<'_>) -> Result<Self, Malformed> {
        Ok(match input.get()? {
            FileType::Character => Self::Character(input.get()?, input.get()?),
            FileType::Block => Self::Block(input.get()?, input.get()?),
            FileType::Socket => Self::Socket(input.get()?),
            FileType::Fifo => Self::Fifo(input.get()?),
            kind => Self::NotSpecial(kind),
        })
    }
}

xdr_struct!(
    /// Arguments of MKNOD.
    #[derive(Copy)]
    MkNodArgs<'a> {
        /// Where.
        place: DirEntry<'a>,
        /// What.
        what: SpecialFile,
    }
);

xdr_struct!(
    /// Result of CREATE, MKDIR, SYMLINK and MKNOD.
    #[derive(Copy)]
    Created {
        /// The new file.
        object: Option<FileHandle>,
        /// Its attributes.
        attributes: PostOp,
        /// The directory before and after.
        dir_wcc: Wcc,
    }
);

xdr_struct!(
    /// Arguments of RENAME.
    #[derive(Copy)]
    RenameArgs<'a> {
        /// Old name.
        from: DirEntry<'a>,
        /// New name.
        to: DirEntry<'a>,
    }
);

xdr_struct!(
    /// What RENAME answers, successful or not.
    #[derive(Copy, Default)]
    RenameWcc {
        /// The old directory before and after.
        from_dir: Wcc,
        /// The new directory before and after.
        to_dir: Wcc,
    }
);

xdr_struct!(
    /// Arguments of LINK.
    #[derive(Copy)]
    LinkArgs<'a> {
        /// The file.
        file: FileHandle,
        /// Its further name.
        link: DirEntry<'a>,
    }
);

xdr_struct!(
    /// What LINK answers, successful or not.
    #[derive(Copy, Default)]
    LinkBody {
        /// The file's attributes.
        attributes: PostOp,
        /// The directory before and after.
        dir_wcc: Wcc,
    }
);

xdr_struct!(
    /// Arguments of READDIR.
    #[derive(Copy)]
    ReadDirArgs {
        /// The directory.
        dir: FileHandle,
        /// Where to go on: 0, or the cookie of the last entry that the client has.
        cookie: u64,
        /// Comes with the cookie.
        verifier: CookieVerifier,
        /// Most bytes of the reply.
        count: u32,
    }
);

xdr_struct!(
    /// An entry of READDIR.
    Entry<'a> {
        /// Number of the file.
        fileid: u64,
        /// Its name.
        name: Name<'a>,
        /// Where to go on after it.
        cookie: u64,
    }
);

xdr_struct!(
    /// Result of READDIR.
    ReadDirOk<'a> {
        /// The directory's attributes.
        attributes: PostOp,
        /// Comes with the cookies.
        verifier: CookieVerifier,
        /// Entries.
        entries: List<Entry<'a>>,
        /// There are no more.
        eof: bool,
    }
);

xdr_struct!(
    /// Arguments of READDIRPLUS.
    #[derive(Copy)]
    ReadDirPlusArgs {
        /// The directory.
        dir: FileHandle,
        /// Where to go on: 0, or the cookie of the last entry that the client has.
        cookie: u64,
        /// Comes with the cookie.
        verifier: CookieVerifier,
        /// Most bytes of names, numbers and cookies.
        dir_count: u32,
        /// Most bytes of the reply.
        max_count: u32,
    }
);

xdr_struct!(
    /// An entry of READDIRPLUS.
    EntryPlus<'a> {
        /// Number of the file.
        fileid: u64,
        /// Its name.
        name: Name<'a>,
        /// Where to go on after it.
        cookie: u64,
        /// Its attributes.
        attributes: PostOp,
        /// Its handle.
        handle: Option<FileHandle>,
    }
);

xdr_struct!(
    /// Result of READDIRPLUS.
    ReadDirPlusOk<'a> {
        /// The directory's attributes.
        attributes: PostOp,
        /// Comes with the cookies.
        verifier: CookieVerifier,
        /// Entries.
        entries: List<EntryPlus<'a>>,
        /// There are no more.
        eof: bool,
    }
);

xdr_struct!(
    /// Result of FSSTAT.
    #[derive(Copy)]
    FsStatOk {
        /// The file's attributes.
        attributes: PostOp,
        /// Bytes in all.
        total_bytes: u64,
        /// Bytes free.
        free_bytes: u64,
        /// Bytes free to the caller.
        available_bytes: u64,
        /// Files in all.
        total_files: u64,
        /// Files free.
        free_files: u64,
        /// Files free to the caller.
        available_files: u64,
        /// Seconds for which this is not expected to change.
        invariant_seconds: u32,
    }
);

/// Properties in FSINFO (RFC 1813 section 3.3.19).
pub mod properties {
    /// Hard links are supported.
    pub const LINK: u32 = 0x01;
    /// Symbolic links are supported.
    pub const SYMLINK: u32 = 0x02;
    /// PATHCONF is the same for every file.
    pub const HOMOGENEOUS: u32 = 0x08;
    /// Times can be set by SETATTR.
    pub const CAN_SET_TIME: u32 = 0x10;
}

xdr_struct!(
    /// Result of FSINFO.
    #[derive(Copy)]
    FsInfoOk {
        /// The file's attributes.
        attributes: PostOp,
        /// Most bytes of a READ.
        read_max: u32,
        /// Preferred.
        read_preferred: u32,
        /// Multiple that suits.
        read_multiple: u32,
        /// Most bytes of a WRITE.
        write_max: u32,
        /// Preferred.
        write_preferred: u32,
        /// Multiple that suits.
        write_multiple: u32,
        /// Preferred bytes of a READDIR.
        readdir_preferred: u32,
        /// Largest file.
        max_file_size: u64,
        /// Granularity of times.
        time_delta: Time,
        /// Bits of [`properties`].
        properties: u32,
    }
);

xdr_struct!(
    /// Result of PATHCONF.
    #[derive(Copy)]
    PathConfOk {
        /// The file's attributes.
        attributes: PostOp,
        /// Most hard links.
        link_max: u32,
        /// Longest name.
        name_max: u32,
        /// Longer names are refused, not cut.
        no_truncation: bool,
        /// Only the superuser may give files away.
        chown_restricted: bool,
        /// Names differ by case.
        case_insensitive: bool,
        /// Case of names is kept.
        case_preserving: bool,
    }
);

xdr_struct!(
    /// Arguments of COMMIT.
    #[derive(Copy)]
    CommitArgs {
        /// The file.
        file: FileHandle,
        /// First byte.
        offset: u64,
        /// Number of bytes; 0 is up to the end.
        count: u32,
    }
);

xdr_struct!(
    /// Result of COMMIT.
    #[derive(Copy)]
    CommitOk {
        /// The file before and after.
        wcc: Wcc,
        /// Of this instance of the server.
        verifier: WriteVerifier,
    }
);
