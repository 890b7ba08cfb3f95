//! An SSH server with keys of its own, at the other end of a pair of sockets.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use russh::keys::key::safe_rng;
use russh::keys::ssh_key::LineEnding;
use russh::keys::{Algorithm, PrivateKey};
use russh::server::{Config, Handler, run_stream};
use scenarios::session::{Access, Stream};

/// Serves a client whose key is put into `folder`. Gives the client's way in; the thread ends with the connection.
pub fn serve(
    folder: &Path,
    handler: impl Handler + Send + 'static,
) -> (Stream, Access, JoinHandle<()>) {
    let key = || PrivateKey::random(&mut safe_rng(), Algorithm::Ed25519).expect("a key");
    let (host_key, user_key) = (key(), key());
    let user_file = folder.join("id");
    user_key
        .write_openssh_file(&user_file, LineEnding::LF)
        .expect("written");
    let host_line = host_key.public_key().to_openssh().expect("a line");
    let access = Access::new("root", &user_file, &host_line).expect("keys");
    let configuration = Arc::new(Config {
        keys: vec![host_key],
        auth_rejection_time: Duration::ZERO,
        ..Config::default()
    });
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    let serving = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        runtime.block_on(async {
            theirs.set_nonblocking(true).expect("a mode");
            let stream = tokio::net::UnixStream::from_std(theirs).expect("a stream");
            // How it ends is the client's to judge.
            if let Ok(session) = run_stream(configuration, stream, handler).await {
                let _ = session.await;
            }
        });
    });
    (Stream::Unix(ours), access, serving)
}
