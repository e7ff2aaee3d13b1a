//! Containers on networks: the standard plugins, in a network namespace that stands for the host's.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream, UdpSocket},
    process::Command,
    time::Duration,
};

use cofferdam_client::{
    Client, Container, ContainerRequest, Network, NetworkStatus, PortMapping, Protocol, RunRequest, Stdio, Task,
};
use cofferdam_integration::{Daemon, bounded, output, until};
use cofferdam_types::Code;

use crate::{named, script, with};

/// A bridge with all that a network of the peers has by default.
pub fn blue(daemon: &Daemon) {
    let leases = daemon.path().join("leases");
    let bridge = serde_json::json!({
        "type": "bridge", "bridge": "blue0", "isGateway": true, "ipMasq": true, "hairpinMode": true,
        "capabilities": { "ips": true, "mac": true },
        "dns": { "nameservers": ["10.213.0.1"], "search": ["blue.example"] },
        "ipam": {
            "type": "host-local", "dataDir": leases, "ranges": [[{ "subnet": "10.213.0.0/24" }]],
            "routes": [{ "dst": "0.0.0.0/0" }],
        },
    });
    let portmap = serde_json::json!({ "type": "portmap", "snat": true, "capabilities": { "portMappings": true } });
    configure(daemon, "blue", &[bridge, portmap, serde_json::json!({ "type": "firewall" })]);
}

/// Configures a network.
pub fn configure(daemon: &Daemon, name: &str, plugins: &[serde_json::Value]) {
    let (configs, own) = daemon.networks();
    for dir in [&configs, &own] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let conf = serde_json::json!({ "cniVersion": "1.0.0", "name": name, "plugins": plugins });
    std::fs::write(configs.join(format!("{name}.conflist")), conf.to_string()).unwrap();
}

/// What the plugins leave on the host: interfaces, rules and chains, and leases.
pub fn traces(daemon: &Daemon) -> BTreeSet<String> {
    let run = |program: &'static str, args: &'static [&'static str]| {
        let output = daemon.inside(|| Command::new(program).args(args).output().unwrap());
        assert!(output.status.success(), "{program}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let mut found = BTreeSet::new();
    let links = run("ip", &["-o", "link"]);
    found.extend(links.lines().filter(|line| line.contains("veth")).map(|line| format!("link {line}")));
    for table in [&["-t", "nat", "-S"][..], &["-t", "filter", "-S"]] {
        // Of one container, and not of all.
        let of_one =
            |line: &&str| line.contains("10.213.0.") || line.contains("-N CNI-DN-") || line.contains("-N CNI-SN-");
        found.extend(run("iptables", table).lines().filter(of_one).map(|line| format!("rule {line}")));
    }
    let leases = std::fs::read_dir(daemon.path().join("leases/blue")).into_iter().flatten();
    let leases = leases.filter_map(|entry| entry.unwrap().file_name().into_string().ok());
    found.extend(leases.filter(|name| name.starts_with("10.")).map(|name| format!("lease {name}")));
    found
}

/// Waits until the plugins have left nothing.
pub fn no_traces(daemon: &Daemon) {
    let mut left = BTreeSet::new();
    let end = std::time::Instant::now() + cofferdam_integration::DEADLINE;
    loop {
        let now = traces(daemon);
        if now.is_empty() {
            return;
        }
        assert!(std::time::Instant::now() < end, "left behind: {now:#?}\n{left:#?}\n{}", daemon.log());
        left = now;
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn on_blue(request: &mut ContainerRequest) {
    request.options.network = Network::Named("blue".into());
}

/// Runs a script to its end, and gives what it wrote.
pub async fn says(
    client: &Client,
    daemon: &Daemon,
    id: &str,
    line: &str,
    change: impl FnOnce(&mut RunRequest),
) -> String {
    let mut request = script(daemon, id, line);
    request.container.remove_on_exit = true;
    let (stdout, arrivals) = output();
    request.stdio = Stdio { stdout, ..Stdio::default() };
    change(&mut request);
    let run = client.run(request).unwrap();
    let exit = run.wait().await.unwrap();
    assert_eq!(exit.status, 0, "{line}");
    run.container().removed().await.unwrap();
    drop(run);
    arrivals.text().await
}

pub async fn started(container: &Container) -> (Task, NetworkStatus) {
    let task = container.create_task(Stdio::default(), true);
    task.start().await.unwrap();
    (task, container.info().await.unwrap().task.unwrap().network.unwrap())
}

/// Says hello to who listens there, and gives what he says.
pub fn ask(daemon: &Daemon, address: SocketAddr) -> Option<String> {
    daemon.inside(|| {
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        let mut text = String::new();
        stream.write_all(b"hello\n").ok()?;
        stream.read_to_string(&mut text).ok()?;
        (!text.is_empty()).then_some(text)
    })
}

#[test]
fn containers_reach_each_other_and_are_reached_through_the_hosts_ports() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let serve = "while true; do echo served by $(hostname) | nc -l -p 80 > /dev/null; done";
        let server = with(&namespace, "server", serve, |c| {
            on_blue(c);
            let port = |host_port, container_port, protocol| PortMapping {
                host_port,
                container_port,
                protocol,
                host_address: None,
            };
            c.options.networking.ports = vec![port(8080, 80, Protocol::Tcp), port(5353, 53, Protocol::Udp)];
        });
        let (task, network) = started(&server).await;
        assert_eq!((&*network.network, &*network.device, network.ports.len()), ("blue", "eth0", 2));
        assert_eq!(
            (&*network.addresses, &*network.gateways),
            (&["10.213.0.2/24".to_owned()][..], &["10.213.0.1".to_owned()][..])
        );
        assert!(network.mac.len() == 17, "{network:?}");
        // Another container reaches it over the bridge, and through the host.
        for address in ["10.213.0.2 80", "10.213.0.1 8080"] {
            let line = format!("until nc -w 2 {address} < /dev/null | grep served; do sleep 0.1; done");
            let heard = says(&client, &daemon, "client", &line, |r| on_blue(&mut r.container)).await;
            assert_eq!(heard, "served by server\n", "{address}");
        }
        // So does the host.
        for address in ["10.213.0.2:80", "10.213.0.1:8080", "127.0.0.1:8080"] {
            let heard = until(address, || ask(&daemon, address.parse().unwrap()));
            assert_eq!(heard, "served by server\n", "{address}");
        }
        let own = File::open(format!("/proc/{}/ns/net", task.state().await.unwrap().pid)).unwrap();
        let bound = std::thread::spawn(move || {
            cofferdam_sys::process::setns(own, libc::CLONE_NEWNET).unwrap();
            UdpSocket::bind("0.0.0.0:53").unwrap()
        });
        let bound = bound.join().unwrap();
        bound.set_read_timeout(Some(cofferdam_integration::DEADLINE)).unwrap();
        daemon.inside(|| UdpSocket::bind("10.213.0.1:0").unwrap().send_to(b"datagram", "10.213.0.1:5353").unwrap());
        let mut bytes = [0; 64];
        let length = bound.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..length], b"datagram");
        drop(bound);
        let shown = String::from_utf8(daemon.coffer(&["ps"]).stdout).unwrap();
        assert!(shown.contains("10.213.0.2,8080->80/tcp,5353->53/udp"), "{shown}");
        let inspected = String::from_utf8(daemon.coffer(&["inspect", "server"]).stdout).unwrap();
        assert!(inspected.contains("10.213.0.2/24"), "{inspected}");
        // Its end gives the network up, not only its removal.
        task.kill(9, true).await.unwrap();
        task.wait().await.unwrap();
        no_traces(&daemon);
        assert_eq!(server.info().await.unwrap().task.unwrap().network, None);
        task.delete().await.unwrap();
        // It can run again, and gets another connection.
        let (_, network) = started(&server).await;
        assert_eq!(network.ports.len(), 2);
        assert!(
            ask(&daemon, "127.0.0.1:8080".parse().unwrap()).is_some()
                || until("it serves", || ask(&daemon, "127.0.0.1:8080".parse().unwrap())).len() > 1
        );
        server.remove(true).await.unwrap();
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn a_container_knows_names() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        for runtime in ["native", "runc"] {
            let files = "cat /etc/resolv.conf; cat /etc/hosts | tail -n 2; cat /etc/hostname; hostname; \
                         ls -ln /etc/hosts | cut -c-10; ! touch /etc/hosts 2>/dev/null";
            let text = says(&client, &daemon, "box", files, |r| {
                on_blue(&mut r.container);
                r.container.runtime = runtime.into();
                r.container.options.hostname = "web.example".into();
                r.container.options.networking.hosts = vec![("db".into(), "10.1.2.3".into())];
            });
            let expected = "nameserver 10.213.0.1\nsearch blue.example\n10.213.0.X\tweb.example web\n10.1.2.3\tdb\n\
                            web.example\nweb.example\n-rw-r--r--\n";
            let text = text.await;
            let line = text.lines().find(|line| line.ends_with("web.example web")).unwrap_or_default();
            let own = line.split('\t').next().unwrap().to_owned();
            assert!(own.starts_with("10.213.0."), "{text}");
            assert_eq!(text, expected.replace("10.213.0.X", &own), "{runtime}");
        }
        let said = says(&client, &daemon, "said", "cat /etc/resolv.conf", |r| {
            on_blue(&mut r.container);
            let names = &mut r.container.options.networking;
            (names.dns_servers, names.dns_options) = (vec!["1.2.3.4".into()], vec!["ndots:2".into()]);
        });
        assert_eq!(said.await, "nameserver 1.2.3.4\nsearch blue.example\noptions ndots:2\n");
        // One that is connected to nothing can be told names as well.
        let alone = says(&client, &daemon, "alone", "tail -n 1 /etc/hosts", |r| {
            r.container.options.networking.hosts = vec![("db".into(), "10.1.2.3".into())];
        });
        assert_eq!(alone.await, "10.1.2.3\tdb\n");
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn an_address_can_be_asked_for() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let wish = |r: &mut RunRequest| {
            on_blue(&mut r.container);
            r.container.options.networking.addresses = vec!["10.213.0.77".into()];
            r.container.options.networking.mac = "02:00:00:00:00:77".into();
        };
        let line = "ip -o addr show dev eth0 | grep -o '10[.0-9]*/24'; cat /sys/class/net/eth0/address; \
                    grep -c . /sys/class/net/lo/operstate; ip route | grep -c 'default via 10.213.0.1'";
        // Each waits for the one before it to have given the address up.
        for _ in 0..3 {
            let text = says(&client, &daemon, "box", line, wish).await;
            assert_eq!(text, "10.213.0.77/24\n02:00:00:00:00:77\n1\n1\n");
        }
        let mut first = script(&daemon, "first", "exec sleep 1000");
        wish(&mut first);
        let first = crate::start(&client, first).await;
        let mut second = script(&daemon, "second", "true");
        wish(&mut second);
        let error = client.run(second).unwrap().wait().await.unwrap_err();
        assert_eq!(named(&error), (Code::AlreadyExists, "address", "10.213.0.77"));
        assert!(error.message.contains("container first"), "{error}");
        first.container().remove(true).await.unwrap();
    });
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn a_namespace_by_path_and_that_of_another_container() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    let pin = daemon.path().join("pinned");
    cofferdam_sys::network::pin(&pin).unwrap();
    bounded(async {
        let client = daemon.client().await;
        let namespace = daemon.open().await;
        let own = |path: &std::path::Path| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
        let number = |text: &str| text.trim().trim_matches(|c: char| !c.is_ascii_digit()).to_owned();
        for runtime in ["native", "runc"] {
            let by_path = says(&client, &daemon, "box", "readlink /proc/self/ns/net", |r| {
                r.container.options.network = Network::Path(pin.to_str().unwrap().into());
                r.container.runtime = runtime.into();
            });
            assert_eq!(number(&by_path.await), own(&pin).to_string(), "{runtime}");
            // One that is on a network, and one that has a loopback alone.
            for (id, change) in [("connected", on_blue as fn(&mut ContainerRequest)), ("alone", |_| ())] {
                let first = with(&namespace, id, "exec sleep 1000", change);
                let task = first.create_task(Stdio::default(), false);
                let pid = task.start().await.unwrap();
                let expected = own(format!("/proc/{pid}/ns/net").as_ref()).to_string();
                let line = "readlink /proc/self/ns/net; cat /etc/hosts";
                let shared = says(&client, &daemon, "sharer", line, |r| {
                    r.container.options.network = Network::Container(id.into());
                    r.container.runtime = runtime.into();
                });
                let shared = shared.await;
                assert_eq!(number(shared.lines().next().unwrap()), expected, "{runtime} {id}");
                assert_eq!(shared.contains("\tconnected\n"), id == "connected", "{shared}");
                // What shares a network doesn't take it along.
                assert_eq!(first.info().await.unwrap().task.unwrap().network.is_some(), id == "connected");
                first.remove(true).await.unwrap();
            }
        }
        let refused = async |change: &dyn Fn(&mut RunRequest)| {
            let mut request = script(&daemon, "refused", "true");
            change(&mut request);
            client.run(request).unwrap().wait().await.unwrap_err()
        };
        let by = |network: Network| move |r: &mut RunRequest| r.container.options.network = network.clone();
        let missing = refused(&by(Network::Container("nobody".into()))).await;
        assert_eq!(named(&missing), (Code::NotFound, "container", "nobody"));
        let made = with(&namespace, "made", "true", |_| ());
        made.info().await.unwrap();
        let idle = refused(&by(Network::Container("made".into()))).await;
        assert_eq!(named(&idle), (Code::FailedPrecondition, "container", "made"));
        made.remove(false).await.unwrap();
        let file = refused(&by(Network::Path("/etc/passwd".into()))).await;
        assert_eq!((file.code, &*file.kind), (Code::InvalidArgument, "namespace"), "{file}");
        let gone = refused(&by(Network::Path("/nonexistent/ns".into()))).await;
        assert_eq!((gone.code, &*gone.kind), (Code::NotFound, "namespace"), "{gone}");
    });
    cofferdam_sys::network::unpin(&pin).unwrap();
    no_traces(&daemon);
    daemon.settles(&before);
}

#[test]
fn networks_are_listed_and_what_they_can_not_do_is_said_before_anything_is_made() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    configure(&daemon, "plain", &[serde_json::json!({ "type": "loopback" })]);
    let before = daemon.leftovers();
    bounded(async {
        let client = daemon.client().await;
        let networks = daemon.open().await.networks();
        let all = networks.list().all().await.unwrap();
        let names: Vec<_> = all.iter().map(|n| (&*n.name, n.plugins.join(","))).collect();
        assert_eq!(names, [("blue", "bridge,portmap,firewall".to_owned()), ("plain", "loopback".to_owned())]);
        assert!(networks.get("blue").await.unwrap().config.contains("host-local"));
        assert_eq!(named(&networks.get("red").await.unwrap_err()), (Code::NotFound, "network", "red"));
        assert_eq!(networks.get("../blue").await.unwrap_err().code, Code::InvalidArgument);
        let shown = String::from_utf8(daemon.coffer(&["network", "ls"]).stdout).unwrap();
        assert!(shown.contains("bridge,portmap,firewall"), "{shown}");
        let shown = String::from_utf8(daemon.coffer(&["network", "inspect", "plain"]).stdout).unwrap();
        assert!(shown.contains("loopback"), "{shown}");

        let port = PortMapping { host_port: 80, container_port: 80, ..PortMapping::default() };
        let refused = async |network: Network, change: &dyn Fn(&mut ContainerRequest)| {
            let mut request = script(&daemon, "box", "true");
            request.container.options.network = network;
            change(&mut request.container);
            client.run(request).unwrap().wait().await.unwrap_err()
        };
        let of = |name: &str| Network::Named(name.into());
        let unknown = refused(of("red"), &|_| ()).await;
        assert_eq!(named(&unknown), (Code::NotFound, "network", "red"));
        let path = refused(of("../../blue"), &|_| ()).await;
        assert_eq!((path.code, &*path.kind), (Code::InvalidArgument, "network"), "{path}");
        let unable = refused(of("plain"), &|c| c.options.networking.ports = vec![port.clone()]).await;
        assert_eq!(named(&unable), (Code::FailedPrecondition, "network", "plain"));
        assert!(unable.message.contains("portmap"), "{unable}");
        for network in [Network::None, Network::Host, Network::Container("x".into())] {
            let nowhere = refused(network, &|c| c.options.networking.ports = vec![port.clone()]).await;
            assert_eq!(named(&nowhere), (Code::InvalidArgument, "options", "ports"));
        }
        let twice = refused(of("blue"), &|c| c.options.networking.ports = vec![port.clone(), port.clone()]).await;
        assert_eq!(named(&twice), (Code::InvalidArgument, "options", "ports"));
        let sysctl = refused(Network::Path("/proc/1/ns/net".into()), &|c| {
            c.options.sysctls.insert("net.ipv4.ip_forward".into(), "1".into());
        });
        assert_eq!(named(&sysctl.await), (Code::InvalidArgument, "options", "sysctls"));
        let line = refused(of("blue"), &|c| c.options.networking.hosts = vec![("a\nb".into(), "1.1.1.1".into())]).await;
        assert_eq!(named(&line), (Code::InvalidArgument, "options", "hosts"));
        assert_eq!(daemon.open().await.containers().list::<&str>(&[]).all().await.unwrap().len(), 0);
    });
    assert_eq!(traces(&daemon), BTreeSet::new());
    daemon.settles(&before);
}

#[test]
fn a_port_of_the_host_leads_to_one_container() {
    let daemon = Daemon::with_network(&[]);
    blue(&daemon);
    let before = daemon.leftovers();
    let coffer = |args: &[&str]| {
        let output = daemon.coffer(args);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        (output.status.code().unwrap(), text)
    };
    let image = cofferdam_integration::BUSYBOX;
    let run = |name| coffer(&["run", "-d", "--name", name, "--net", "blue", "-p", "8080:80", image, "sleep", "1000"]);
    assert_eq!(run("one").0, 0);
    let (code, text) = run("two");
    assert!(code == 125 && text.contains("port 8080/tcp: is that of container one"), "{code} {text}");
    assert_eq!(coffer(&["rm", "-f", "one"]).0, 0);
    assert_eq!(run("two").0, 0);
    assert_eq!(coffer(&["rm", "-f", "two"]).0, 0);
    bounded(async {
        let client = daemon.client().await;
        assert_eq!(says(&client, &daemon, "alone", "ls /sys/class/net", |_| ()).await, "lo\n");
    });
    no_traces(&daemon);
    daemon.settles(&before);
}
