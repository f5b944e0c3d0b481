package preflight

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// lookupPatience is how long a name server has for a name.
const lookupPatience = 5 * time.Second

// network checks the own address, the ports and the names.
func (r *run) network() {
	if r.address() {
		r.ports()
	}
	r.names()
	r.hostsFile()
}

// address tells whether the ports can be tried.
func (r *run) address() bool {
	if !r.Address.IsValid() {
		r.skipped("address", "the address isn't known before the start, so neither it nor the ports were checked")
		return false
	}
	l, err := net.Listen("tcp", net.JoinHostPort(r.Address.String(), "0"))
	if err != nil {
		r.problem("address", "give one of this machine's addresses with --address: "+ownAddresses(),
			"--address=%s isn't an address of this machine: %v",
			r.Address, err)
		return false
	}
	l.Close()
	const do = "give an address at which the other masters reach this one with --address, "
	switch {
	case r.Address.IsLoopback() && r.members > 1 && !r.AddressGiven:
		r.problem("address", do+"for example "+ownAddresses(), "--address is missing, so it is %s, which the other %d masters can't "+
			"reach", r.Address,
			r.members-1)
	case r.Address.IsLoopback() && r.members != 1 && !r.AddressGiven:
		r.warning("address", do+"unless this is the only master", "--address is missing, so it is %s, which no other machine can "+
			"reach", r.Address)
	default:
		r.ok("address", "%s is an address of this machine", r.Address)
	}
	return true
}

// ownAddresses lists what others may reach.
func ownAddresses() string {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return "none can be read: " + err.Error()
	}
	var all []string
	for _, a := range list {
		p, err := netip.ParsePrefix(a.String())
		if err == nil && !p.Addr().IsLoopback() && !p.Addr().IsLinkLocalUnicast() {
			all = append(all, p.Addr().String())
		}
	}
	if len(all) == 0 {
		return "it has none that other machines can reach"
	}
	const most = 8
	return strings.Join(all[:min(len(all), most)], ", ")
}

// ports tries each port, and gives it back at once.
func (r *run) ports() {
	var free []string
	for _, x := range r.Listeners {
		host := x.Host
		if a, err := netip.ParseAddr(host); err == nil && a.IsUnspecified() {
			host = ""
		}
		l, err := net.Listen("tcp", net.JoinHostPort(host, x.Port))
		if err == nil {
			l.Close()
			free = append(free, x.Port)
			continue
		}
		at := net.JoinHostPort(x.Host, x.Port)
		switch {
		case errors.Is(err, syscall.EADDRINUSE):
			r.portInUse(x, at)
		case errors.Is(err, syscall.EACCES):
			r.problem("ports", "run as root, or choose a port from 1024 on with "+x.Setting, "%s (%s) needs more rights: %v", at,
				x.Setting, err)
		default:
			r.problem("ports", "correct "+x.Setting, "nothing can listen on %s (%s): %v", at, x.Setting, err)
		}
	}
	if len(free) > 0 {
		slices.Sort(free)
		r.ok("ports", "free: %s", strings.Join(slices.Compact(free), ", "))
	}
}

// program is one that runs on this machine.
type program struct {
	id   int
	name string
	args []string
}

func (r *run) portInUse(x Listener, at string) {
	p := holder(x.Port)
	who, do := "", "stop what uses it, or choose another port with "+x.Setting
	if p.id > 0 {
		who = fmt.Sprintf(" by %s (process %d)", p.name, p.id)
	}
	own := r.DataDir != "" && slices.ContainsFunc(p.args, func(arg string) bool { return strings.Contains(arg, r.DataDir+"/") })
	switch {
	case own && x.Setting != "--grpc-port":
		r.warning("ports", "nothing, if the manager was killed or is being restarted: it goes on with this etcd",
			"%s (%s) is in use by this node's own etcd (process %d)", at, x.Setting, p.id)
		return
	case strings.HasPrefix(p.name, "etcd-manager"):
		do = "a manager runs here already; stop it, or check before its start"
	case p.name == "etcd":
		do = "an etcd runs here already: `etcd-manager adopt` takes it over with its data (docs/adopt.md); or stop it"
	}
	r.problem("ports", do, "%s (%s) is in use%s", at, x.Setting, who)
}

// names asks for every host name that is configured.
func (r *run) names() {
	for _, name := range slices.Compact(slices.Sorted(slices.Values(r.Names))) {
		ctx, cancel := context.WithTimeout(r.ctx, lookupPatience)
		found, err := r.Lookup(ctx, name)
		cancel()
		switch {
		case err != nil:
			r.problem("names", "add it to DNS or to /etc/hosts, or use an address", "the name %s doesn't resolve: %v", name, err)
		case slices.ContainsFunc(found, func(a netip.Addr) bool { return a.Unmap().IsLoopback() }) && !r.Address.IsLoopback():
			r.problem("names", "remove it from the line of loopback in /etc/hosts (some installers add the own name to 127.0.1.1)",
				"the name %s resolves to loopback here (%v): other masters wouldn't reach it", name, found)
		default:
			r.ok("names", "%s is %v", name, found)
		}
	}
}

// hostsFile checks that names can be written.
func (r *run) hostsFile() {
	if r.HostsFile == "" {
		return
	}
	f, err := os.OpenFile(r.HostsFile, os.O_RDWR, 0)
	if err != nil {
		r.problem("names", "run as root, make the file writable, or name another one with --hosts-file",
			"the members' names can't be written to %s: %v", r.HostsFile, err)
		return
	}
	f.Close()
	r.ok("names", "%s can be written", r.HostsFile)
}
