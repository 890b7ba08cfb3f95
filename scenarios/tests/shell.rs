//! A shell in the guest, against an SSH server that prints what it is sent.

mod ssh;

use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use russh::server::{Auth, ChannelOpenHandle, Handler, Msg, Session, VerifiedPublicKey};
use russh::{Channel, ChannelId};
use scenarios::session::{Said, Shell};

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
    let (stream, access, serving) = ssh::serve(folder.path(), Echo);
    let (said, heard) = channel();
    let begun = Instant::now();
    let shell = Shell::start(stream, access, (24, 80), move |what| {
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
