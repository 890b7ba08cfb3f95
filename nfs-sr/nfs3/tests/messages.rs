//! Messages survive a round trip, match bytes written down by hand from the RFCs, and no bytes at all
//! make a decoder panic.

use nfs3::{
    lease, mount,
    nfs::*,
    portmap,
    rpc::{self, Answer, Call, Credentials, NotACall, Procedure, Reply, UnixUser},
    types::*,
    xdr::{Decode, Encode, List, Malformed, decode_all},
};
use proptest::prelude::*;

fn handle() -> FileHandle {
    FileHandle::new(&[7; 32]).expect("32 bytes fit")
}

fn attributes() -> Attributes {
    Attributes {
        kind: FileType::Regular,
        mode: 0o644,
        nlink: 1,
        uid: 1000,
        gid: 100,
        size: 5,
        used: 4096,
        device: Device::default(),
        fsid: 9,
        fileid: 77,
        atime: Time {
            seconds: 1,
            nanoseconds: 2,
        },
        mtime: Time {
            seconds: 3,
            nanoseconds: 4,
        },
        ctime: Time {
            seconds: 5,
            nanoseconds: 6,
        },
    }
}

/// Encodes, decodes and compares; then checks that every shorter message is refused.
fn round_trip<'a, T>(value: &T, bytes: &'a mut Vec<u8>)
where
    T: Encode + Decode<'a> + PartialEq + std::fmt::Debug,
{
    bytes.clear();
    value.encode(bytes);
    let bytes: &'a [u8] = bytes;
    assert_eq!(bytes.len() % 4, 0, "XDR items are multiples of four");
    assert_eq!(decode_all::<T>(bytes).as_ref(), Ok(value));
    for cut in 0..bytes.len() {
        assert!(
            decode_all::<T>(&bytes[..cut]).is_err(),
            "{value:?} cut to {cut}"
        );
    }
}

macro_rules! round_trips {
    ($($value:expr => $ty:ty),* $(,)?) => { $({
        let mut bytes = Vec::new();
        let value: $ty = $value;
        round_trip::<$ty>(&value, &mut bytes);
    })* };
}

#[test]
fn every_kind_of_message_survives_a_round_trip() {
    let place = DirEntry {
        dir: handle(),
        name: Name(b"disk.vhd"),
    };
    let set = SetAttributes {
        mode: Some(0o600),
        uid: None,
        gid: Some(1),
        size: Some(1 << 40),
        atime: SetTime::Now,
        mtime: SetTime::To(Time {
            seconds: 8,
            nanoseconds: 9,
        }),
    };
    let wcc = Wcc {
        before: Some((&attributes()).into()),
        after: Some(attributes()),
    };
    let holding = lease::Holding {
        epoch: 3,
        mode: lease::Mode::Exclusive,
        owner: lease::Owner(b"h1"),
        remaining_ms: 10,
    };
    round_trips! {
        Ok(attributes()) => <GetAttr as Procedure>::Reply<'_>,
        Err(Failure { status: Status::Stale, body: () }) => <GetAttr as Procedure>::Reply<'_>,
        SetAttrArgs { object: handle(), attributes: set, guard: Some(Time::default()) } => SetAttrArgs,
        place => DirEntry<'_>,
        Ok(LookupOk { object: handle(), attributes: None, dir_attributes: Some(attributes()) })
            => <Lookup as Procedure>::Reply<'_>,
        ReadOk { attributes: None, count: 3, eof: true, data: Data(b"abc") } => ReadOk<'_>,
        WriteArgs { file: handle(), offset: 1, count: 5, stable: Stability::DataSync, data: Data(b"hello") }
            => WriteArgs<'_>,
        WriteOk { wcc, count: 5, committed: Stability::Unstable, verifier: [1; 8] } => WriteOk,
        CreateArgs { place, how: CreateHow::Exclusive([2; 8]) } => CreateArgs<'_>,
        CreateArgs { place, how: CreateHow::Guarded(set) } => CreateArgs<'_>,
        SymLinkArgs { place, attributes: set, target: Path(b"../x") } => SymLinkArgs<'_>,
        MkNodArgs { place, what: SpecialFile::Block(set, Device { major: 8, minor: 1 }) } => MkNodArgs<'_>,
        MkNodArgs { place, what: SpecialFile::NotSpecial(FileType::Regular) } => MkNodArgs<'_>,
        Created { object: Some(handle()), attributes: None, dir_wcc: wcc } => Created,
        RenameArgs { from: place, to: place } => RenameArgs<'_>,
        LinkArgs { file: handle(), link: place } => LinkArgs<'_>,
        ReadDirPlusOk {
            attributes: None,
            verifier: [0; 8],
            entries: List(vec![EntryPlus {
                fileid: 1, name: Name(b"a"), cookie: 5, attributes: Some(attributes()), handle: Some(handle()),
            }]),
            eof: true,
        } => ReadDirPlusOk<'_>,
        CommitArgs { file: handle(), offset: 0, count: 0 } => CommitArgs,
        mount::MountResult(Ok(mount::Mounted { root: handle(), flavors: vec![1, 0] })) => mount::MountResult,
        mount::MountResult(Err(mount::MountStatus::NoEnt)) => mount::MountResult,
        portmap::Mapping { program: 100003, version: 3, protocol: 6, port: 2049 } => portmap::Mapping,
        lease::AcquireArgs {
            file: place, owner: lease::Owner(b"h1"), mode: lease::Mode::Shared, expected_epoch: 0, ttl_ms: 5000,
        } => lease::AcquireArgs<'_>,
        lease::LeaseResult(Ok(lease::Grant { holding, object: handle() })) => lease::LeaseResult<'_, lease::Grant<'_>>,
        lease::LeaseResult(Err(lease::Refused { status: lease::LeaseStatus::Stale, holding }))
            => lease::LeaseResult<'_, lease::Grant<'_>>,
        lease::Listing { leases: List(vec![lease::Listed { path: Path(b"sr/vdi.vhd"), holding }]) }
            => lease::Listing<'_>,
    }
}

/// A GETATTR call and its reply as RFC 5531 and RFC 1813 draw them.
#[test]
fn known_bytes() {
    let user = UnixUser {
        stamp: 1,
        machine: rpc::MachineName(b"h1"),
        uid: 0,
        gid: 0,
        groups: vec![5],
    };
    let record = rpc::call::<GetAttr>(0x11223344, &Credentials::Unix(user.clone()), &handle());
    #[rustfmt::skip]
    let expected = [
        0x80, 0, 0, 104, // last fragment, length
        0x11, 0x22, 0x33, 0x44, // xid
        0, 0, 0, 0, 0, 0, 0, 2, // CALL, RPC version 2
        0, 1, 0x86, 0xa3, 0, 0, 0, 3, 0, 0, 0, 1, // program 100003, version 3, procedure 1
        0, 0, 0, 1, 0, 0, 0, 28, // AUTH_SYS, length
        0, 0, 0, 1, 0, 0, 0, 2, b'h', b'1', 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 5,
        0, 0, 0, 0, 0, 0, 0, 0, // AUTH_NONE verifier
        0, 0, 0, 32,
    ];
    assert_eq!(record[..expected.len()], expected);
    let call = Call::parse(&record[4..]).expect("own call");
    assert_eq!(
        (call.xid, call.program, call.procedure),
        (0x11223344, PROGRAM, GetAttr::NUMBER)
    );
    assert_eq!(call.credentials, Credentials::Unix(user));
    assert_eq!(
        decode_all::<FileHandle>(call.arguments.rest()),
        Ok(handle())
    );

    let record = rpc::reply::<GetAttr>(
        9,
        &Err(Failure {
            status: Status::BadHandle,
            body: (),
        }),
    );
    let expected = [
        0, 0, 0, 9, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x27, 0x11,
    ];
    assert_eq!(record[4..], expected);
    let reply = Reply::parse(&record[4..]).expect("own reply");
    assert_eq!(
        reply.results::<GetAttr>(),
        Ok(Err(Failure {
            status: Status::BadHandle,
            body: ()
        }))
    );
}

#[test]
fn refusals_are_told_apart() {
    let versions = rpc::VersionRange { low: 3, high: 3 };
    let record = rpc::refused(1, rpc::Refusal::ProgramMismatch, versions);
    let reply = Reply::parse(&record[4..]).expect("own reply");
    assert!(matches!(
        reply.answer,
        Answer::Refused(rpc::Refusal::ProgramMismatch)
    ));
    let reply_record = rpc::denied_credentials(1, rpc::AuthError::TooWeak);
    let reply = Reply::parse(&reply_record[4..]).expect("own reply");
    assert_eq!(
        reply.results::<GetAttr>(),
        Err(rpc::CallFailed::Credentials(rpc::AuthError::TooWeak))
    );
    let mut other_version = rpc::call::<Null>(5, &Credentials::None, &());
    other_version[4 + 11] = 3;
    assert_eq!(
        Call::parse(&other_version[4..]).err(),
        Some(NotACall::RpcVersion { xid: 5, version: 3 })
    );
}

#[test]
fn lengths_are_bounded() {
    let mut bytes = Vec::new();
    u32::MAX.encode(&mut bytes);
    bytes.extend([0; 64]);
    assert!(matches!(
        decode_all::<FileHandle>(&bytes),
        Err(Malformed::TooLong { .. })
    ));
    assert!(matches!(
        decode_all::<Data<'_>>(&bytes),
        Err(Malformed::TooLong { .. })
    ));
}

proptest! {
    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Call::parse(&bytes);
        let _ = Reply::parse(&bytes).map(|r| r.results::<Read>());
        let _ = decode_all::<SetAttrArgs>(&bytes);
        let _ = decode_all::<WriteArgs<'_>>(&bytes);
        let _ = decode_all::<MkNodArgs<'_>>(&bytes);
        let _ = decode_all::<CreateArgs<'_>>(&bytes);
        let _ = decode_all::<<ReadDirPlus as Procedure>::Reply<'_>>(&bytes);
        let _ = decode_all::<mount::MountResult>(&bytes);
        let _ = decode_all::<lease::Listing<'_>>(&bytes);
    }

    #[test]
    fn changed_bytes_of_a_call_do_not_panic(at in 0usize..150, to in any::<u8>()) {
        let args = WriteArgs { file: handle(), offset: 1, count: 5, stable: Stability::FileSync, data: Data(b"hello") };
        let mut record = rpc::call::<Write>(1, &Credentials::None, &args);
        let at = at % record.len();
        record[at] = to;
        if let Ok(mut call) = Call::parse(&record[4..]) {
            let _ = call.arguments.get::<WriteArgs<'_>>();
        }
    }
}
