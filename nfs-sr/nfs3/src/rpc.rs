//! ONC RPC version 2 (RFC 5531): the envelope of every call and reply.

use alloc::vec::Vec;

use crate::{
    record,
    xdr::{self, Decode, Decoder, Encode, Malformed, xdr_bytes, xdr_enum, xdr_struct},
};

/// The only version of RPC in use.
const RPC_VERSION: u32 = 2;
const CALL: u32 = 0;
const REPLY: u32 = 1;
/// Longest body of a credential or verifier (RFC 5531 section 8.2).
const MAX_AUTH: usize = 400;
const AUTH_NONE: u32 = 0;
const AUTH_SYS: u32 = 1;
/// Supplementary groups in AUTH_SYS (RFC 5531 appendix A).
pub const MAX_GROUPS: usize = 16;

/// One remote procedure: its number, what it takes and what it answers.
pub trait Procedure {
    /// Program number.
    const PROGRAM: u32;
    /// Version of the program.
    const VERSION: u32;
    /// Number within the program.
    const NUMBER: u32;
    /// Name for logs and metrics.
    const NAME: &'static str;
    /// Arguments.
    type Args<'a>: Encode + Decode<'a>;
    /// Reply.
    type Reply<'a>: Encode + Decode<'a>;
}

/// Declares the procedures of a program as empty types.
macro_rules! procedures {
    ($program:expr, $version:expr, {
        $($(#[$meta:meta])* $name:ident = $number:literal: $args:ty => $reply:ty,)*
    }) => {
        $(
            $(#[$meta])*
            #[derive(Clone, Copy, Debug)]
            pub struct $name;

            impl $crate::rpc::Procedure for $name {
                const PROGRAM: u32 = $program;
                const VERSION: u32 = $version;
                const NUMBER: u32 = $number;
                const NAME: &'static str = stringify!($name);
                type Args<'a> = $args;
                type Reply<'a> = $reply;
            }
        )*

        /// Name of a procedure of this program, for logs and metrics.
        pub fn procedure_name(number: u32) -> &'static str {
            match number {
                $($number => stringify!($name),)*
                _ => "Unknown",
            }
        }
    };
}
pub(crate) use procedures;

xdr_bytes!(
    /// Name of the machine a call comes from.
    MachineName, 255
);

/// Who calls (RFC 5531 appendix A). Supplementary groups are in [`UnixUser::groups`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnixUser<'a> {
    /// Arbitrary number of the caller.
    pub stamp: u32,
    /// The caller's host name.
    pub machine: MachineName<'a>,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Further groups, at most [`MAX_GROUPS`].
    pub groups: Vec<u32>,
}

impl Encode for UnixUser<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        self.stamp.encode(out);
        self.machine.encode(out);
        self.uid.encode(out);
        self.gid.encode(out);
        let groups = &self.groups[..self.groups.len().min(MAX_GROUPS)];
        (groups.len() as u32).encode(out);
        for group in groups {
            group.encode(out);
        }
    }
}

impl<'a> Decode<'a> for UnixUser<'a> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed> {
        let (stamp, machine) = (input.get()?, input.get()?);
        let (uid, gid) = (input.get()?, input.get()?);
        let count = u32::decode(input)? as usize;
        if count > MAX_GROUPS {
            return Err(Malformed::TooLong {
                length: count,
                limit: MAX_GROUPS,
            });
        }
        let groups = (0..count).map(|_| input.get()).collect::<Result<_, _>>()?;
        Ok(Self {
            stamp,
            machine,
            uid,
            gid,
            groups,
        })
    }
}

/// Credentials of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credentials<'a> {
    /// AUTH_NONE.
    None,
    /// AUTH_SYS.
    Unix(UnixUser<'a>),
    /// A flavour that this crate does not read.
    Other {
        /// Its number.
        flavor: u32,
    },
}

impl Encode for Credentials<'_> {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut body = Vec::new();
        let flavor = match self {
            Self::None => AUTH_NONE,
            Self::Unix(user) => {
                user.encode(&mut body);
                AUTH_SYS
            }
            Self::Other { flavor } => *flavor,
        };
        flavor.encode(out);
        xdr::put_opaque(out, &body);
    }
}

impl<'a> Decode<'a> for Credentials<'a> {
    fn decode(input: &mut Decoder<'a>) -> Result<Self, Malformed> {
        let flavor = u32::decode(input)?;
        let body = input.opaque(MAX_AUTH)?;
        Ok(match flavor {
            AUTH_NONE => Self::None,
            AUTH_SYS => Self::Unix(xdr::decode_all(body)?),
            flavor => Self::Other { flavor },
        })
    }
}

/// A call, up to its arguments.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// Chosen by the caller; the reply carries it.
    pub xid: u32,
    /// Program.
    pub program: u32,
    /// Version of the program.
    pub version: u32,
    /// Procedure.
    pub procedure: u32,
    /// Who calls.
    pub credentials: Credentials<'a>,
    /// The arguments, not decoded.
    pub arguments: Decoder<'a>,
}

/// Why a record is not a call that can be served.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotACall {
    /// There is nothing to answer to: close the connection.
    #[error("not an RPC call: {0}")]
    Garbage(Malformed),
    /// To be answered with [`denied_version`].
    #[error("RPC version {version} is not supported")]
    RpcVersion {
        /// For the reply.
        xid: u32,
        /// What the caller speaks.
        version: u32,
    },
    /// To be answered with [`denied_credentials`].
    #[error("the credentials cannot be read: {why}")]
    Credentials {
        /// For the reply.
        xid: u32,
        /// What is wrong.
        why: Malformed,
    },
}

impl<'a> Call<'a> {
    /// Reads the envelope of a record.
    pub fn parse(record: &'a [u8]) -> Result<Self, NotACall> {
        let mut input = Decoder::new(record);
        let mut word = || input.get::<u32>().map_err(NotACall::Garbage);
        let xid = word()?;
        let kind = word()?;
        if kind != CALL {
            return Err(NotACall::Garbage(Malformed::BadValue {
                what: "an RPC call",
                value: kind,
            }));
        }
        let version = word()?;
        if version != RPC_VERSION {
            return Err(NotACall::RpcVersion { xid, version });
        }
        let (program, version, procedure) = (word()?, word()?, word()?);
        let credentials = |why| NotACall::Credentials { xid, why };
        let call_credentials = input.get().map_err(credentials)?;
        // The caller's verifier has no meaning under AUTH_NONE and AUTH_SYS.
        u32::decode(&mut input).map_err(credentials)?;
        input.opaque(MAX_AUTH).map_err(credentials)?;
        Ok(Self {
            xid,
            program,
            version,
            procedure,
            credentials: call_credentials,
            arguments: input,
        })
    }
}

/// A complete record, mark included, that calls `P`.
pub fn call<P: Procedure>(xid: u32, credentials: &Credentials<'_>, args: &P::Args<'_>) -> Vec<u8> {
    let mut out = record::begin(256);
    for word in [xid, CALL, RPC_VERSION, P::PROGRAM, P::VERSION, P::NUMBER] {
        word.encode(&mut out);
    }
    credentials.encode(&mut out);
    put_null_verifier(&mut out);
    args.encode(&mut out);
    record::finish(&mut out);
    out
}

fn put_null_verifier(out: &mut Vec<u8>) {
    AUTH_NONE.encode(out);
    0u32.encode(out);
}

xdr_enum!(
    /// Why the callee did not run an accepted call (RFC 5531 section 9, `accept_stat`).
    Refusal as "accept_stat" {
        /// The program is not served here.
        ProgramUnavailable = 1,
        /// Another version of it is.
        ProgramMismatch = 2,
        /// It has no such procedure.
        ProcedureUnavailable = 3,
        /// The arguments cannot be decoded.
        GarbageArguments = 4,
        /// Something else, such as memory.
        SystemError = 5,
    }
);

xdr_struct!(
    /// Versions that are supported.
    #[derive(Copy)]
    VersionRange {
        /// Lowest.
        low: u32,
        /// Highest.
        high: u32,
    }
);

/// Starts the record of a successful reply; results follow, then [`record::finish`].
pub fn accepted(xid: u32, capacity: usize) -> Vec<u8> {
    let mut out = record::begin(24 + capacity);
    for word in [xid, REPLY, 0] {
        word.encode(&mut out);
    }
    put_null_verifier(&mut out);
    0u32.encode(&mut out);
    out
}

/// A complete record with a successful reply.
pub fn reply<P: Procedure>(xid: u32, results: &P::Reply<'_>) -> Vec<u8> {
    let mut out = accepted(xid, 256);
    results.encode(&mut out);
    record::finish(&mut out);
    out
}

/// A complete record that refuses a call. `versions` matters for [`Refusal::ProgramMismatch`] only.
pub fn refused(xid: u32, refusal: Refusal, versions: VersionRange) -> Vec<u8> {
    let mut out = record::begin(32);
    for word in [xid, REPLY, 0] {
        word.encode(&mut out);
    }
    put_null_verifier(&mut out);
    refusal.encode(&mut out);
    if refusal == Refusal::ProgramMismatch {
        versions.encode(&mut out);
    }
    record::finish(&mut out);
    out
}

/// A complete record that denies a call of another RPC version.
pub fn denied_version(xid: u32) -> Vec<u8> {
    denied(&[xid, REPLY, 1, 0, RPC_VERSION, RPC_VERSION])
}

/// A complete record that denies a call for its credentials.
pub fn denied_credentials(xid: u32, why: AuthError) -> Vec<u8> {
    denied(&[xid, REPLY, 1, 1, why as u32])
}

fn denied(words: &[u32]) -> Vec<u8> {
    let mut out = record::begin(24);
    for word in words {
        word.encode(&mut out);
    }
    record::finish(&mut out);
    out
}

xdr_enum!(
    /// Why credentials are not accepted (RFC 5531 section 9, `auth_stat`).
    AuthError as "auth_stat" {
        /// They are malformed.
        BadCredentials = 1,
        /// The client must begin a new session.
        RejectedCredentials = 2,
        /// The verifier is malformed.
        BadVerifier = 3,
        /// The verifier expired or was replayed.
        RejectedVerifier = 4,
        /// Refused for security reasons.
        TooWeak = 5,
    }
);

/// How the callee answered.
#[derive(Clone, Debug)]
pub enum Answer<'a> {
    /// The call ran; its results follow.
    Results(Decoder<'a>),
    /// The call was not run.
    Refused(Refusal),
    /// Another RPC version is spoken there.
    DeniedVersion,
    /// The credentials were not accepted.
    DeniedCredentials(AuthError),
}

/// Why there are no results of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallFailed {
    /// The reply cannot be decoded.
    #[error("the reply is malformed: {0}")]
    Malformed(#[from] Malformed),
    /// The callee did not run the call.
    #[error("the server refused the call: {0:?}")]
    Refused(Refusal),
    /// Another RPC version is spoken there.
    #[error("the server speaks another version of RPC")]
    Version,
    /// The credentials were not accepted.
    #[error("the server does not accept the credentials: {0:?}")]
    Credentials(AuthError),
}

/// A reply, up to its results.
#[derive(Clone, Debug)]
pub struct Reply<'a> {
    /// Of the call that is answered.
    pub xid: u32,
    /// The answer.
    pub answer: Answer<'a>,
}

impl<'a> Reply<'a> {
    /// Reads the envelope of a record.
    pub fn parse(record: &'a [u8]) -> Result<Self, Malformed> {
        let mut input = Decoder::new(record);
        let xid = input.get()?;
        match input.get::<u32>()? {
            REPLY => {}
            value => {
                return Err(Malformed::BadValue {
                    what: "an RPC reply",
                    value,
                });
            }
        }
        let answer = match input.get::<u32>()? {
            0 => {
                u32::decode(&mut input)?;
                input.opaque(MAX_AUTH)?;
                match input.get::<u32>()? {
                    0 => Answer::Results(input),
                    value => Answer::Refused(Refusal::from_wire(value)?),
                }
            }
            1 => match input.get::<u32>()? {
                0 => Answer::DeniedVersion,
                1 => Answer::DeniedCredentials(input.get()?),
                value => {
                    return Err(Malformed::BadValue {
                        what: "reject_stat",
                        value,
                    });
                }
            },
            value => {
                return Err(Malformed::BadValue {
                    what: "reply_stat",
                    value,
                });
            }
        };
        Ok(Self { xid, answer })
    }

    /// The results of `P`, which the caller knows by the [`Self::xid`].
    pub fn results<P: Procedure>(self) -> Result<P::Reply<'a>, CallFailed> {
        match self.answer {
            Answer::Results(mut input) => {
                let results = input.get()?;
                input.finish()?;
                Ok(results)
            }
            Answer::Refused(refusal) => Err(CallFailed::Refused(refusal)),
            Answer::DeniedVersion => Err(CallFailed::Version),
            Answer::DeniedCredentials(why) => Err(CallFailed::Credentials(why)),
        }
    }
}
