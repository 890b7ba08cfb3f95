//! The SSH connection to the guest.

use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;

use russh::keys::{
    PrivateKey, PrivateKeyWithHashAlg, PublicKey, PublicKeyOrCertificate, load_secret_key,
};
use russh::{Channel, ChannelMsg, client};
use tokio::io::{AsyncRead, AsyncWrite};

use super::SessionError;

/// The byte stream to the guest's SSH server.
#[derive(Debug)]
pub enum Stream {
    /// From a lab's endpoint.
    Unix(UnixStream),
    /// To an address.
    Tcp(TcpStream),
}

/// Who logs in, and to whom.
#[derive(Clone, Debug)]
pub struct Access {
    /// The guest's user.
    pub user: String,
    /// The user's private key.
    pub key: PrivateKey,
    /// The guest's host key; another one is refused.
    pub host_key: PublicKey,
}

impl Access {
    /// Reads the user's key from a file in OpenSSH's format; `host_key` is a line as in `authorized_keys`.
    ///
    /// # Errors
    ///
    /// One of the keys cannot be read.
    pub fn new(user: &str, key: &Path, host_key: &str) -> Result<Self, SessionError> {
        Ok(Self {
            user: user.to_owned(),
            key: load_secret_key(key, None)
                .map_err(|error| SessionError::Key(format!("{}: {error}", key.display())))?,
            host_key: PublicKey::from_openssh(host_key.trim())
                .map_err(|error| SessionError::Key(format!("host key {host_key:?}: {error}")))?,
        })
    }
}

/// An authenticated connection.
#[derive(Clone)]
pub struct Connection {
    handle: Arc<client::Handle<Verifier>>,
}

impl Connection {
    /// Connects and logs in.
    pub async fn open(stream: Stream, access: &Access) -> Result<Self, SessionError> {
        match stream {
            Stream::Unix(stream) => {
                stream.set_nonblocking(true)?;
                Self::over(tokio::net::UnixStream::from_std(stream)?, access).await
            }
            Stream::Tcp(stream) => {
                stream.set_nonblocking(true)?;
                stream.set_nodelay(true)?;
                Self::over(tokio::net::TcpStream::from_std(stream)?, access).await
            }
        }
    }

    async fn over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        access: &Access,
    ) -> Result<Self, SessionError> {
        let verifier = Verifier {
            host_key: access.host_key.clone(),
        };
        let configuration = Arc::new(client::Config::default());
        let mut handle = client::connect_stream(configuration, stream, verifier).await?;
        let key = PrivateKeyWithHashAlg::new(Arc::new(access.key.clone()), None);
        let answer = handle.authenticate_publickey(&access.user, key).await?;
        if !answer.success() {
            return Err(SessionError::Refused {
                user: access.user.clone(),
            });
        }
        Ok(Self {
            handle: Arc::new(handle),
        })
    }

    /// Starts a command on a terminal of this size.
    pub async fn terminal(
        &self,
        rows: u16,
        columns: u16,
        command: &str,
    ) -> Result<Channel<client::Msg>, SessionError> {
        let channel = self.handle.channel_open_session().await?;
        channel
            .request_pty(false, "xterm", columns.into(), rows.into(), 0, 0, &[])
            .await?;
        channel.exec(true, command).await?;
        Ok(channel)
    }

    /// Starts a command over a channel of its own.
    pub async fn execute(&self, command: &str) -> Result<Channel<client::Msg>, SessionError> {
        let channel = self.handle.channel_open_session().await?;
        channel.exec(true, command).await?;
        Ok(channel)
    }

    /// Runs a command over a channel of its own and gives what it prints.
    pub async fn output(&self, command: &str) -> Result<Vec<u8>, SessionError> {
        let mut channel = self.execute(command).await?;
        let mut output = Vec::new();
        let mut status = None;
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } if output.len() + data.len() <= OUTPUT_MAX => {
                    output.extend_from_slice(&data);
                }
                ChannelMsg::Data { .. } => break,
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                _ => {}
            }
        }
        if status == Some(0) {
            Ok(output)
        } else {
            Err(SessionError::Command {
                command: command.to_owned(),
                status,
            })
        }
    }
}

/// More than any document.
const OUTPUT_MAX: usize = 1 << 20;

/// Accepts the one host key.
struct Verifier {
    host_key: PublicKey,
}

impl client::Handler for Verifier {
    type Error = russh::Error;

    async fn check_server_key(
        &mut self,
        offered: &PublicKeyOrCertificate,
    ) -> Result<bool, Self::Error> {
        Ok(match offered {
            PublicKeyOrCertificate::PublicKey { key, .. } => {
                key.key_data() == self.host_key.key_data()
            }
            _ => false,
        })
    }
}
