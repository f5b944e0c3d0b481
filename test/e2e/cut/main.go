// Command cut holds a network namespace for the container tests, and cuts it off from others without a sound.
//
//	cut hold            stays until it is told to end, so that other containers can share its network
//	cut block ADDR...   from now on packets to these IPv4 neighbors are lost, without any error
//	cut open ADDR...    they arrive again
//	cut list DIR        prints the names in a directory, as empty images have no other tool for it
//
// A neighbor is blocked by a permanent entry in the neighbor table with a hardware address that nobody has. Unlike a route that is
// missing, that is not noticed by who sends: connections hang, as they do in a real partition.
package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "cut: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("say hold, block, open or list")
	}
	switch args[0] {
	case "hold":
		end := make(chan os.Signal, 1)
		signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
		<-end
		return nil
	case "block", "open":
		for _, s := range args[1:] {
			a, err := netip.ParseAddr(s)
			if err != nil {
				return err
			}
			if err := neighbor(a, args[0] == "block"); err != nil {
				return fmt.Errorf("%s %s: %w", args[0], a, err)
			}
		}
		return nil
	case "list":
		return list(args[1:])
	}
	return fmt.Errorf("%q is not hold, block, open or list", args[0])
}

func list(dirs []string) error {
	for _, dir := range dirs {
		entries, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, e := range entries {
			fmt.Println(e.Name())
		}
	}
	return nil
}

// nobody is a hardware address of the range for private use.
func nobody() []byte { return []byte{0x02, 0, 0, 0, 0xde, 0xad} }

// neighbor adds or removes the entry that leads nowhere.
func neighbor(a netip.Addr, block bool) error {
	index, err := outside(a)
	if err != nil {
		return err
	}
	var body bytes.Buffer
	message := unix.NdMsg{Family: unix.AF_INET, Ifindex: int32(index), State: unix.NUD_PERMANENT}
	if err := binary.Write(&body, binary.NativeEndian, message); err != nil {
		return err
	}
	attribute(&body, unix.NDA_DST, a.AsSlice())
	kind, flags := uint16(unix.RTM_DELNEIGH), uint16(unix.NLM_F_REQUEST|unix.NLM_F_ACK)
	if block {
		attribute(&body, unix.NDA_LLADDR, nobody())
		kind, flags = unix.RTM_NEWNEIGH, flags|unix.NLM_F_CREATE|unix.NLM_F_REPLACE
	}
	err = request(kind, flags, body.Bytes())
	if !block && errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// outside is the index of the interface through which an address is reached directly.
func outside(a netip.Addr) (int, error) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return 0, err
	}
	for _, i := range interfaces {
		addrs, err := i.Addrs()
		if err != nil {
			return 0, err
		}
		for _, ia := range addrs {
			if p, err := netip.ParsePrefix(ia.String()); err == nil && p.Contains(a) && i.Flags&net.FlagLoopback == 0 {
				return i.Index, nil
			}
		}
	}
	return 0, errors.New("no interface is on its network")
}

// attribute appends a netlink attribute; its value is padded to four bytes.
func attribute(b *bytes.Buffer, kind uint16, value []byte) {
	_ = binary.Write(b, binary.NativeEndian, unix.RtAttr{Len: uint16(unix.SizeofRtAttr + len(value)), Type: kind})
	b.Write(value)
	b.Write(make([]byte, (4-len(value)%4)%4))
}

// request sends one netlink message and waits for its acknowledgement.
func request(kind, flags uint16, body []byte) error {
	s, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	var b bytes.Buffer
	header := unix.NlMsghdr{Len: uint32(unix.SizeofNlMsghdr + len(body)), Type: kind, Flags: flags, Seq: 1}
	if err := binary.Write(&b, binary.NativeEndian, header); err != nil {
		return err
	}
	b.Write(body)
	if err := unix.Sendto(s, b.Bytes(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 8192)
	n, _, err := unix.Recvfrom(s, answer, 0)
	if err != nil {
		return err
	}
	messages, err := syscall.ParseNetlinkMessage(answer[:n])
	if err != nil {
		return err
	}
	for _, m := range messages {
		if m.Header.Type != unix.NLMSG_ERROR || len(m.Data) < 4 {
			continue
		}
		if code := int32(binary.NativeEndian.Uint32(m.Data)); code != 0 {
			return syscall.Errno(-code)
		}
		return nil
	}
	return errors.New("the kernel gave no answer")
}
