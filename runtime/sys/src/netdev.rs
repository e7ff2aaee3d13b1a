//! Network devices: from one network namespace into another, with what they are.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
};

use crate::{check, process};

// linux/if_link.h, linux/if_addr.h: libc lacks some of them.
const IFLA_IFNAME: u16 = 3;
const IFLA_NET_NS_FD: u16 = 28;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_FLAGS: u16 = 8;
const IFA_F_PERMANENT: u32 = 0x80;
/// Of an address that is valid anywhere.
const RT_SCOPE_UNIVERSE: u8 = 0;

/// What the kernel puts in front of a message, of a link and of an address.
const HEADER: usize = 16;
const LINK: usize = 16;
const ADDRESS: usize = 8;

/// A network namespace, with a socket of it.
#[derive(Debug)]
pub struct Place {
    namespace: File,
    socket: OwnedFd,
}

/// A device as it is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Device {
    index: u32,
    /// Whether it is up.
    pub up: bool,
}

/// An address of a device, as the kernel told it: its header, and what is kept of the rest.
#[derive(Debug)]
struct Address {
    family: u8,
    prefix: u8,
    attributes: Vec<(u16, Vec<u8>)>,
}

impl Place {
    /// That of this thread.
    pub fn own() -> io::Result<Place> {
        Ok(Place { namespace: File::open("/proc/thread-self/ns/net")?, socket: route()? })
    }

    /// Another one. This thread is in it for a moment, and ends the process if it can't get back.
    pub fn of(namespace: File) -> io::Result<Place> {
        let own = File::open("/proc/thread-self/ns/net")?;
        process::setns(&namespace, libc::CLONE_NEWNET)?;
        let socket = route();
        if process::setns(&own, libc::CLONE_NEWNET).is_err() {
            // On the wrong network nothing that follows would be right.
            std::process::abort();
        }
        Ok(Place { namespace, socket: socket? })
    }

    /// Whether both are the same.
    pub fn is(&self, other: &Place) -> io::Result<bool> {
        let (one, two) = (self.namespace.metadata()?, other.namespace.metadata()?);
        Ok((one.dev(), one.ino()) == (two.dev(), two.ino()))
    }

    /// The device of that name; `ENODEV` if there is none.
    pub fn find(&self, name: &str) -> io::Result<Device> {
        let mut found = None;
        let request = Message::new(libc::RTM_GETLINK, 0, &[0; LINK]).attribute(IFLA_IFNAME, &named(name));
        self.ask(request, |kind, body| {
            if let (libc::RTM_NEWLINK, Some(index), Some(flags)) = (kind, word(body, 4), word(body, 8)) {
                found = Some(Device { index, up: flags & libc::IFF_UP as u32 != 0 });
            }
        })?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENODEV))
    }

    /// Gives the device `name` to another namespace, where it is `new`, with the addresses that it has for good and that
    /// are valid everywhere; whatever else it is goes with it. There it is `up` or not. `EEXIST` if the name is taken.
    pub fn give(&self, name: &str, to: &Place, new: &str, up: bool) -> io::Result<()> {
        let device = self.find(name)?;
        // The kernel would move it first and then fail to rename it.
        match to.find(new) {
            Ok(_) => return Err(io::Error::from_raw_os_error(libc::EEXIST)),
            Err(e) if e.raw_os_error() == Some(libc::ENODEV) => {}
            Err(e) => return Err(e),
        }
        let addresses = self.addresses(device)?;
        let target = (to.namespace.as_raw_fd() as u32).to_ne_bytes();
        let moved = Message::new(libc::RTM_NEWLINK, 0, &link(device.index, false))
            .attribute(IFLA_NET_NS_FD, &target)
            .attribute(IFLA_IFNAME, &named(new));
        self.ask(moved, |_, _| {})?;
        let index = to.find(new)?.index;
        for address in &addresses {
            let mut header = [0; ADDRESS];
            (header[0], header[1], header[3]) = (address.family, address.prefix, RT_SCOPE_UNIVERSE);
            header[4..].copy_from_slice(&index.to_ne_bytes());
            let flags = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;
            let add = Message::new(libc::RTM_NEWADDR, flags, &header);
            let add = address.attributes.iter().fold(add, |add, (kind, value)| add.attribute(*kind, value));
            to.ask(add, |_, _| {})?;
        }
        if up { to.ask(Message::new(libc::RTM_NEWLINK, 0, &link(index, true)), |_, _| {}) } else { Ok(()) }
    }

    fn addresses(&self, device: Device) -> io::Result<Vec<Address>> {
        let mut found = Vec::new();
        let request = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP as u16, &[0; ADDRESS]);
        self.ask(request, |kind, body| {
            let [family, prefix, flags, scope, ..] = *body else { return };
            if kind != libc::RTM_NEWADDR || word(body, 4) != Some(device.index) || scope != RT_SCOPE_UNIVERSE {
                return;
            }
            let (mut flags, mut kept) = (u32::from(flags), Vec::new());
            each(&body[ADDRESS..], |kind, value| match kind {
                IFA_FLAGS => flags = word(value, 0).unwrap_or(flags),
                IFA_ADDRESS | IFA_LOCAL | IFA_BROADCAST => kept.push((kind, value.to_vec())),
                _ => {}
            });
            if flags & IFA_F_PERMANENT != 0 {
                found.push(Address { family, prefix, attributes: kept });
            }
        })?;
        Ok(found)
    }

    /// Sends a message, and takes every answer in until the kernel says that this was all.
    fn ask(&self, message: Message, mut take: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let dump = message.dumps();
        let bytes = message.finish();
        let socket = self.socket.as_fd().as_raw_fd();
        // SAFETY: the pointer is valid for the length.
        check(unsafe { libc::send(socket, bytes.as_ptr().cast(), bytes.len(), 0) } as libc::c_long)?;
        // The kernel makes no answer larger than this.
        let mut buffer = vec![0u8; 32 << 10];
        loop {
            // SAFETY: the pointer is valid for the length.
            let got = check(unsafe { libc::recv(socket, buffer.as_mut_ptr().cast(), buffer.len(), 0) } as libc::c_long);
            let got = match got {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other? as usize,
            };
            let mut rest = &buffer[..got];
            while let Some((length, kind)) = word(rest, 0).zip(half(rest, 4)) {
                let Some(body) = rest.get(HEADER..length as usize) else { return Err(malformed()) };
                match i32::from(kind) {
                    // An answer to every request: an errno, which may be 0.
                    libc::NLMSG_ERROR => {
                        return match word(body, 0).ok_or_else(malformed)? as i32 {
                            0 => Ok(()),
                            errno => Err(io::Error::from_raw_os_error(-errno)),
                        };
                    }
                    libc::NLMSG_DONE if dump => return Ok(()),
                    _ => take(kind, body),
                }
                rest = rest.get(aligned(length as usize)..).unwrap_or_default();
            }
        }
    }
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "a message of the kernel's that can't be read")
}

fn route() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no memory is involved; a good result is a fresh descriptor.
    unsafe { Ok(OwnedFd::from_raw_fd(check(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_ROUTE).into())? as i32)) }
}

/// A request on its way to the kernel.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16, header: &[u8]) -> Message {
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(header);
        Message(bytes)
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        self.0.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(aligned(self.0.len()), 0);
        self
    }

    fn dumps(&self) -> bool {
        half(&self.0, 6).is_some_and(|flags| i32::from(flags) & libc::NLM_F_DUMP == libc::NLM_F_DUMP)
    }

    fn finish(mut self) -> Vec<u8> {
        let length = self.0.len() as u32;
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0
    }
}

/// struct ifinfomsg: of a link that is to stay as it is, or to come up.
fn link(index: u32, up: bool) -> [u8; LINK] {
    let mut bytes = [0; LINK];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    if up {
        let flag = (libc::IFF_UP as u32).to_ne_bytes();
        bytes[8..12].copy_from_slice(&flag);
        bytes[12..].copy_from_slice(&flag);
    }
    bytes
}

fn named(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn aligned(length: usize) -> usize {
    length.next_multiple_of(4)
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..at + 2)?.try_into().ok().map(u16::from_ne_bytes)
}

/// Walks attributes.
fn each(mut rest: &[u8], mut take: impl FnMut(u16, &[u8])) {
    while let Some((length, kind)) = half(rest, 0).zip(half(rest, 2)) {
        let Some(value) = rest.get(4..usize::from(length)) else { return };
        take(kind, value);
        rest = rest.get(aligned(usize::from(length))..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::network;

    fn ip(line: &str) -> String {
        let out = Command::new("ip").args(line.split(' ')).output().unwrap();
        assert!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// In a network namespace of its own, which goes with its thread.
    fn apart(test: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
                test();
            });
            thread.join().unwrap();
        });
    }

    #[test]
    fn a_device_goes_and_comes_with_its_addresses() {
        apart(|| {
            ip("link add v0 type veth peer name v1");
            ip("link set v0 mtu 1400 address 02:00:00:00:00:07 up");
            ip("addr add 192.0.2.7/24 broadcast 192.0.2.255 dev v0");
            ip("addr add 2001:db8::7/64 dev v0 nodad");
            ip("addr add 169.254.9.9/16 scope link dev v0");
            ip("addr add 198.51.100.9/24 dev v0 valid_lft 1000 preferred_lft 900");
            let (here, there) = (Place::own().unwrap(), Place::of(network::fresh().unwrap()).unwrap());
            assert!(here.is(&Place::own().unwrap()).unwrap() && !here.is(&there).unwrap());
            assert!(here.find("v0").unwrap().up);
            here.give("v0", &there, "eth7", true).unwrap();
            assert_eq!(here.find("v0").unwrap_err().raw_os_error(), Some(libc::ENODEV));
            assert!(there.find("eth7").unwrap().up);
            there.give("eth7", &here, "back", false).unwrap();
            assert!(!here.find("back").unwrap().up);
            let found = ip("addr show dev back");
            for kept in ["192.0.2.7/24 brd 192.0.2.255", "2001:db8::7/64", "mtu 1400", "02:00:00:00:00:07"] {
                assert!(found.contains(kept), "{kept}: {found}");
            }
            assert!(!found.contains("169.254") && !found.contains("198.51"), "those are of one network: {found}");
        });
    }

    #[test]
    fn a_name_that_is_taken_leaves_it_where_it_is() {
        apart(|| {
            ip("link add v0 type veth peer name v1");
            let (here, there) = (Place::own().unwrap(), Place::of(network::fresh().unwrap()).unwrap());
            assert_eq!(here.give("v0", &there, "lo", true).unwrap_err().raw_os_error(), Some(libc::EEXIST));
            assert_eq!(here.give("none", &there, "x", true).unwrap_err().raw_os_error(), Some(libc::ENODEV));
            here.find("v0").unwrap();
        });
    }
}
