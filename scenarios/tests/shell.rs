//! A shell in the guest, against an SSH server that prints what it is sent.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use scenarios::session::{Access, Said, Shell, Stream};

const PATIENCE: Duration = Duration::from_secs(20);

/// Prints what it is sent, and ends at an exclamation mark.
struct Echo;

impl Handler for Echo {
    type Error = russh::Error;

    async fn auth_publickey(
        &mut self,
        _: &str,
        _: VerifiedPublicKey<'_>,
    ) -> Result<Auth, Self::Error> {
        Ok(Auth::Accept)
    }

    async fn channel_open_session(
        &mut self,
        _: Channel<Msg>,
        reply: ChannelOpenHandle,
        _: &mut Session,
    ) -> Result<(), Self::Error> {
        reply.accept().await;
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        session: &mut Session,
    ) -> Result<(), Self::Error> {
        session.data(channel, data.to_vec())?;
        if data.contains(&b'!') {
            session.close(channel)?;
        }
        Ok(())
    }
}

#[test]
fn what_is_typed_is_printed_and_the_end_is_told() {
    let folder = tempfile::tempdir().expect("a folder");
    let key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).expect("a key");
    let (host_key, user_key) = (key(), key());
    let user_file = folder.path().join("id");
    user_key
        .write_openssh_file(&user_file, LineEnding::LF)
        .expect("written");
    let host_line = host_key.public_key().to_openssh().expect("a line");
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let configuration = Arc::new(russh::server::Config {
        keys: vec![host_key],
        ..russh::server::Config::default()
    });
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            theirs.set_nonblocking(true).expect("a mode");
            let stream = tokio::net::UnixStream::from_std(theirs).expect("a stream");
            let session = russh::server::run_stream(configuration, stream, Echo).await;
            // It ends with the connection, however that ends.
            let _ = session.expect("a session").await;
        });
    });

    let access = Access::new("root", &user_file, &host_line).expect("keys");
    let (said, heard) = channel();
    let begun = Instant::now();
    let shell = Shell::start(Stream::Unix(ours), access, (24, 80), move |what| {
        // The test may be over.
        let _ = said.send(what);
    })
    .expect("a thread");
    for text in ["movies", "!"] {
        shell.type_keys(text.into());
        match heard.recv_timeout(PATIENCE) {
            Ok(Said::Output { bytes, at }) => {
                assert_eq!(bytes, text.as_bytes());
                assert!(begun < at && at <= Instant::now());
            }
            other => panic!("{other:?}"),
        }
    }
    let ended = heard.recv_timeout(PATIENCE).expect("it ends");
    assert_eq!(ended, Said::Ended("the shell has ended".into()));
    serving.join().expect("the server ends with the connection");
}
