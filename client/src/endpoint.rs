use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{env, fmt};

use extent::wire::MAX_CREDITS;
use extent::{Error, Kind, Result};
use rdma::shm::ShmChannel;
use rdma::{Channel, TcpChannel, VerbsChannel};

use crate::connector::EndpointConnector;
use crate::{Options, Session, proof};

/// What shared memory grants at least.
const LEAST_SLOTS: u32 = 32;

/// Where a node is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Endpoint {
    /// A UNIX socket, `unix:/path`: shared memory, on the same host.
    Unix(PathBuf),
    /// A TCP address, `tcp://host:port`.
    Tcp(String),
    /// An address of an RDMA device of the node, `rdma://host:port`.
    Rdma(String),
    /// A node on this host through shared memory, if there is one, else a TCP address. Written
    /// `auto`, `auto:/state/directory`, or `auto:/state/directory,host:port`.
    Auto {
        /// The node's state directory; `None` looks in the usual places.
        state_dir: Option<PathBuf>,
        /// Where to look next.
        tcp: String,
    },
    /// Several ways to one node: `rdma://a:1,b:1`, or `rdma://a:1,tcp://b:2`. A connection that
    /// fails is followed by one over the next.
    Rails(Vec<Endpoint>),
}

impl Endpoint {
    /// The data path's TCP address if a node is not told otherwise.
    pub const DEFAULT_TCP: &'static str = "127.0.0.1:7440";
    /// The data path's UNIX socket, in the state directory.
    pub const SOCKET_NAME: &'static str = "forebay.sock";
    /// Where the system's node keeps its state.
    pub const SYSTEM_STATE_DIR: &'static str = "/var/lib/forebay";

    /// Connects a channel: no greeting yet, see [`Session::connect`].
    ///
    /// # Errors
    /// [`Kind::Disconnected`] if nobody listens there; [`Kind::Denied`] if this user may not, or the
    /// node wants a proof, or another one; what [`Options::proof`] answers.
    pub fn channel(&self, options: &Options) -> Result<Box<dyn Channel>> {
        match self {
            Self::Unix(path) => shared_memory(path, options),
            Self::Tcp(address) => tcp(address, options),
            Self::Rdma(address) => Ok(Box::new(VerbsChannel::connect_with_proof(
                address.as_str(),
                options.connect_timeout,
                options.credits,
                options.rdma,
                proof::next(options.proof.as_ref())?.as_ref(),
            )?)),
            Self::Auto { tcp: address, .. } => {
                let mut reasons = Vec::new();
                for socket in self.sockets() {
                    match shared_memory(&socket, options) {
                        Ok(channel) => return Ok(channel),
                        Err(error) => reasons.push(error.to_string()),
                    }
                }
                tracing::debug!(?reasons, "no shared memory, trying TCP");
                tcp(address, options).map_err(|error| {
                    reasons.push(error.to_string());
                    error.kind().error(format!("no node found: {}", reasons.join("; ")))
                })
            }
            Self::Rails(rails) => first(rails, |rail| rail.channel(options)).map(|(_, it)| it),
        }
    }

    /// Connects a channel and greets the node, over the first rail where that works. The session
    /// connects again when it loses its connection, as the options say.
    ///
    /// # Errors
    /// As [`Endpoint::channel`] and [`Session::connect`].
    pub fn session(&self, options: &Options) -> Result<Session> {
        let connect = |rail: &Self| Session::connect(rail.channel(options)?, options);
        let (rail, session) = first(self.rails(), connect)
            .map_err(|error| error.while_doing(format_args!("connecting to {self}")))?;
        Ok(session.reconnecting(Box::new(EndpointConnector::new(self, options)), rail))
    }

    /// The UNIX sockets at which shared memory is looked for, in this order.
    #[must_use]
    pub fn sockets(&self) -> Vec<PathBuf> {
        match self {
            Self::Unix(path) => vec![path.clone()],
            Self::Tcp(_) | Self::Rdma(_) => Vec::new(),
            Self::Auto { state_dir, .. } => {
                let places = state_dir.clone().map_or_else(usual_state_dirs, |place| vec![place]);
                places.iter().map(|place| place.join(Self::SOCKET_NAME)).collect()
            }
            Self::Rails(rails) => rails.iter().flat_map(Self::sockets).collect(),
        }
    }

    /// The ways to the node.
    pub(crate) fn rails(&self) -> &[Self] {
        match self {
            Self::Rails(rails) => rails,
            single => std::slice::from_ref(single),
        }
    }
}

/// The first rail that works, and what it gave.
fn first<T>(
    rails: &[Endpoint],
    mut connect: impl FnMut(&Endpoint) -> Result<T>,
) -> Result<(usize, T)> {
    let mut reasons: Vec<Error> = Vec::new();
    for (index, rail) in rails.iter().enumerate() {
        match connect(rail) {
            Ok(it) => return Ok((index, it)),
            Err(error) => reasons.push(error),
        }
    }
    let last = reasons.pop().unwrap_or_else(|| Kind::Invalid.error("an endpoint without a rail"));
    if reasons.is_empty() {
        return Err(last);
    }
    reasons.push(last);
    let told: Vec<_> = reasons.iter().map(ToString::to_string).collect();
    let kind = reasons.last().map_or(Kind::Disconnected, Error::kind);
    Err(kind.error(format!("no rail works: {}", told.join("; "))))
}

impl FromStr for Endpoint {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let auto = |state_dir: Option<&str>, tcp: &str| {
            Ok(Self::Auto { state_dir: state_dir.map(Into::into), tcp: checked(tcp)? })
        };
        if text == "auto" {
            return auto(None, Self::DEFAULT_TCP);
        }
        if let Some(rest) = text.strip_prefix("auto:") {
            return match rest.split_once(',') {
                Some(("", tcp)) => auto(None, tcp),
                Some((state_dir, tcp)) => auto(Some(state_dir), tcp),
                None => auto(Some(rest), Self::DEFAULT_TCP),
            };
        }
        if let Some(path) = text.strip_prefix("unix:").filter(|path| !path.is_empty()) {
            return Ok(Self::Unix(path.into()));
        }
        if let Some((scheme @ ("tcp" | "rdma"), addresses)) = text.split_once("://") {
            return rails(scheme, addresses);
        }
        Err(Kind::Invalid.error(format!(
            "{text:?} is not an endpoint: write unix:/path, tcp://host:port, rdma://host:port, or auto"
        )))
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
            Self::Rdma(address) => write!(f, "rdma://{address}"),
            Self::Auto { state_dir: None, tcp } => write!(f, "auto:,{tcp}"),
            Self::Auto { state_dir: Some(path), tcp } => write!(f, "auto:{},{tcp}", path.display()),
            Self::Rails(rails) => {
                for (index, rail) in rails.iter().enumerate() {
                    write!(f, "{}{rail}", if index == 0 { "" } else { "," })?;
                }
                Ok(())
            }
        }
    }
}

/// Addresses one after the other; each may begin with another scheme, which then holds on.
fn rails<'a>(mut scheme: &'a str, addresses: &'a str) -> Result<Endpoint> {
    let mut rails = Vec::new();
    for mut address in addresses.split(',') {
        if let Some((other @ ("tcp" | "rdma"), rest)) = address.split_once("://") {
            (scheme, address) = (other, rest);
        }
        let address = checked(address)?;
        rails.push(if scheme == "tcp" { Endpoint::Tcp(address) } else { Endpoint::Rdma(address) });
    }
    Ok(if rails.len() == 1 { rails.remove(0) } else { Endpoint::Rails(rails) })
}

fn checked(address: &str) -> Result<String> {
    let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
    if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
        return Err(Kind::Invalid.error(format!("{address:?} is not host:port")));
    }
    Ok(address.to_owned())
}

/// The user's own node's, then the system's.
fn usual_state_dirs() -> Vec<PathBuf> {
    let from = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let own = from("XDG_STATE_HOME").or_else(|| Some(from("HOME")?.join(".local/state")));
    let own = own.map(|state| state.join("forebay"));
    own.into_iter().chain([PathBuf::from(Endpoint::SYSTEM_STATE_DIR)]).collect()
}

fn shared_memory(path: &Path, options: &Options) -> Result<Box<dyn Channel>> {
    let slots = u32::from(options.credits).clamp(LEAST_SLOTS, u32::from(MAX_CREDITS));
    Ok(Box::new(ShmChannel::connect(path, options.connect_timeout, slots)?))
}

fn tcp(address: &str, options: &Options) -> Result<Box<dyn Channel>> {
    let proof = proof::next(options.proof.as_ref())?;
    let channel = TcpChannel::connect_with_proof(address, options.connect_timeout, proof.as_ref());
    Ok(Box::new(channel?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_as_they_are_written() {
        for text in [
            "unix:/run/a b",
            "tcp://node7:7700",
            "tcp://[::1]:1",
            "rdma://h:5",
            "auto:/x,h:5",
            "auto:,h:5",
        ] {
            let endpoint: Endpoint = text.parse().expect(text);
            assert_eq!(endpoint.to_string(), text);
        }
        let rails: Endpoint = "rdma://a:1,b:2,tcp://[::1]:3,d:4".parse().expect("rails");
        let [rdma, tcp] = [Endpoint::Rdma, Endpoint::Tcp] as [fn(String) -> Endpoint; 2];
        let each = [(rdma, "a:1"), (rdma, "b:2"), (tcp, "[::1]:3"), (tcp, "d:4")];
        assert_eq!(rails.rails(), each.map(|(rail, address)| rail(address.to_owned())));
        assert_eq!(rails.to_string().parse::<Endpoint>().expect("its own words"), rails);
        let auto: Endpoint = "auto".parse().expect("auto");
        let tcp = Endpoint::DEFAULT_TCP.to_owned();
        assert_eq!(auto, Endpoint::Auto { state_dir: None, tcp });
        let places: Vec<Endpoint> =
            ["unix:/a", "auto:/b,h:5", "tcp://h:5"].map(|text| text.parse().expect(text)).into();
        let sockets = Endpoint::Rails(places).sockets();
        assert_eq!(sockets, [PathBuf::from("/a"), PathBuf::from("/b/forebay.sock")]);
        assert_eq!(auto.sockets().last(), Some(&PathBuf::from("/var/lib/forebay/forebay.sock")));
        for bad in [
            "",
            "unix:",
            "tcp://",
            "rdma://h",
            "tcp://host",
            "tcp://:1",
            "tcp://h:70000",
            "http://h:1",
            "tcp://h:1,",
            "tcp://h:1,unix:/run",
        ] {
            assert_eq!(bad.parse::<Endpoint>().expect_err(bad).kind(), Kind::Invalid, "{bad}");
        }
    }
}
