//! Why sockets end, with which close codes, and the goodbyes.

use std::{fmt, time::Duration};

use futures_util::{SinkExt as _, StreamExt as _};
use proto::gateway::Close;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{
        Error, Message,
        error::ProtocolError,
        protocol::{CloseFrame, frame::coding::CloseCode},
    },
};

/// How long the exchange of goodbyes may take.
pub(crate) const GOODBYE: Duration = Duration::from_secs(2);

/// Why a socket ends.
#[derive(Debug)]
pub(crate) enum End {
    /// The peer said goodbye.
    PeerLeft,
    /// The connection broke.
    Lost(Error),
    /// The peer sent nothing for too long.
    Silent,
    /// The peer took nothing for too long.
    Stuck,
    /// We say goodbye, with a close code.
    Farewell(CloseCode, String),
    /// The peer broke the protocol: what it sends cannot be read any more.
    Unreadable(CloseCode, String),
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerLeft => f.write_str("the peer closed"),
            Self::Lost(error) => write!(f, "connection lost: {error}"),
            Self::Silent => f.write_str("no sign of life"),
            Self::Stuck => f.write_str("the peer takes nothing"),
            Self::Farewell(code, reason) | Self::Unreadable(code, reason) => {
                write!(f, "closed with {} {reason}", u16::from(*code))
            }
        }
    }
}

/// The link to gateway-service is lost: its gateway may come back at once.
pub(super) fn restart() -> End {
    End::Farewell(CloseCode::Restart, "the link was interrupted".to_owned())
}

/// The first message cannot be written.
pub(super) fn internal(error: &serde_json::Error) -> End {
    tracing::error!(%error, "the first message cannot be written");
    End::Farewell(CloseCode::Error, "internal error".to_owned())
}

/// What gateway-service wants to be said.
pub(super) fn farewell_of(close: Close) -> End {
    let code = u16::try_from(close.code).map(CloseCode::from).ok().filter(|code| code.is_allowed());
    // A control frame holds 125 bytes, two of which are the code.
    let mut end = close.reason.len().min(123);
    while !close.reason.is_char_boundary(end) {
        end -= 1;
    }
    End::Farewell(code.unwrap_or(CloseCode::Restart), close.reason[..end].to_owned())
}

/// What the peer broke.
pub(crate) fn end_of(error: Error) -> End {
    match error {
        Error::Capacity(_) => End::Unreadable(CloseCode::Size, "the message is too large".to_owned()),
        Error::Utf8(_) => End::Unreadable(CloseCode::Invalid, "the text is not UTF-8".to_owned()),
        Error::Protocol(ProtocolError::ResetWithoutClosingHandshake) => End::Lost(error),
        Error::Protocol(broken) => End::Unreadable(CloseCode::Protocol, broken.to_string()),
        other => End::Lost(other),
    }
}

/// The closing handshake, as far as the peer takes part in it.
pub(crate) async fn say_goodbye<I: AsyncRead + AsyncWrite + Unpin>(
    socket: &mut WebSocketStream<I>,
    end: &End,
) -> Result<(), Error> {
    match end {
        End::Silent | End::Stuck | End::Lost(_) => return Ok(()),
        End::PeerLeft => {}
        End::Farewell(code, reason) | End::Unreadable(code, reason) => {
            let frame = CloseFrame { code: *code, reason: reason.as_str().into() };
            socket.send(Message::Close(Some(frame))).await?;
        }
    }
    // Our answer to a goodbye goes out while reading.
    while let Some(Ok(_)) = socket.next().await {}
    let io = socket.get_mut();
    io.shutdown().await?;
    if matches!(end, End::Unreadable(..)) {
        // Closing with bytes unread would reset the connection, and the peer would not see the reason.
        let mut rest = [0; 512];
        while io.read(&mut rest).await? > 0 {}
    }
    Ok(())
}
