// Package preflight looks at a machine before the first start of a manager, and says all that is wrong at once, each with what to do.
//
// It only looks: the one thing that it writes is a small object in the store, which it removes, and a file without a name on the disk whose
// speed it measures. It must never form, start or repair anything, and never say "ok" of what it hasn't seen work.
package preflight

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// Level is how bad a finding is.
type Level string

// The levels.
const (
	// OK was seen to work. Problem must be repaired before the start. Warning works, but a person should know. Skipped couldn't be checked.
	OK      Level = "ok"
	Problem Level = "problem"
	Warning Level = "warning"
	Skipped Level = "skipped"
)

// Finding is what one check has found.
type Finding struct {
	// Check is the name of the check: flags, address, ports, names, data-dir, disk-space, disk-speed, certificates, etcd, store, clock,
	// cluster,
	// managers, encryption.
	Check string `json:"check"`
	Level Level  `json:"level"`
	// Text says what is so, Do what to do about it; Do is empty if nothing is to be done.
	Text string `json:"text"`
	Do   string `json:"do,omitempty"`
}

// Listener is an address on which the manager, or its etcd, will listen.
type Listener struct {
	// Setting is the flag that says so, with its dashes.
	Setting string
	Host    string
	Port    string
}

// Config is what a manager would be started with.
type Config struct {
	ClusterName string
	// Machine is this machine's name, which no other has.
	Machine string
	// Address is the own address, AddressGiven that somebody has chosen it.
	Address      netip.Addr
	AddressGiven bool
	Listeners    []Listener
	// Names are host names that have to resolve. HostsFile is set if the manager must write names into it.
	Names     []string
	HostsFile string

	// DataDir is the directory for data; empty if it is only known at the start, for the reason Later. Mounted says that a volume must be
	// mounted there.
	DataDir string
	Later   string
	Mounted bool
	// Quota is the limit of etcd's database in bytes.
	Quota int64

	// PKIDir holds the CAs, of which these are needed.
	PKIDir string
	CAs    []string

	Binaries *process.Binaries
	// Version is the version of etcd that a static configuration wants, Members how many members; empty and 0 if the store says it.
	Version string
	Members int

	// StoreURL is as it was given. Store is nil if it couldn't be opened, for the reason StoreErr, or if none is given.
	StoreURL string
	// StoreDir is the store's directory, if it is one in a file system.
	StoreDir      string
	Store         blob.Store
	StoreErr      error
	Catalog       *catalog.Catalog
	AllowUnfenced bool

	// Copies are the stores to which this one is copied.
	Copies []Place
	// StandbyOf is the other cluster's store if this node follows one; its URL is empty else.
	StandbyOf Place

	// Others are managers that are known without the store: host:port by node id.
	Others map[string][]string
	// Dial connects to the manager of a node and makes sure that it has the same CA.
	Dial func(ctx context.Context, node, endpoint string) error

	// Lookup asks a name server. Now is the clock. Sync measures how long it takes until a write is on the disk, in a directory.
	Lookup func(ctx context.Context, host string) ([]netip.Addr, error)
	Now    func() time.Time
	Sync   func(ctx context.Context, dir string) (Speed, error)
}

// Place is another store. Store is nil if it couldn't be opened, for the reason Err.
type Place struct {
	URL   string
	Store blob.Store
	Err   error
}

// run is one run of all checks.
type run struct {
	Config
	ctx   context.Context
	found []Finding
	// spec is what the store, or the static configuration, wants: 0 members if that isn't known.
	members int
	version string
	quota   int64
}

// Run makes all checks. It ends by itself within about a minute, whatever hangs.
func Run(ctx context.Context, c Config) []Finding {
	r := &run{Config: c, ctx: ctx, members: c.Members, version: c.Version, quota: c.Quota}
	r.store() // first, as it says what is wanted of this machine
	r.copies()
	r.standby()
	inStore := r.found
	r.found = nil
	r.network()
	r.disk()
	r.certificates()
	r.etcd()
	r.found = append(r.found, inStore...)
	r.managers()
	return r.found
}

// OKAll tells whether nothing must be repaired.
func OKAll(found []Finding) bool {
	for _, f := range found {
		if f.Level == Problem {
			return false
		}
	}
	return true
}

func (r *run) add(check string, level Level, do, format string, args ...any) {
	r.found = append(r.found, Finding{Check: check, Level: level, Text: oneLine(fmt.Sprintf(format, args...)), Do: do})
}

func oneLine(s string) string {
	return strings.Join(strings.FieldsFunc(s, func(r rune) bool { return r == '\n' }), "; ")
}

func (r *run) ok(check, format string, args ...any) { r.add(check, OK, "", format, args...) }
func (r *run) problem(check, do, format string, args ...any) {
	r.add(check, Problem, do, format, args...)
}
func (r *run) warning(check, do, format string, args ...any) {
	r.add(check, Warning, do, format, args...)
}
func (r *run) skipped(check, format string, args ...any) { r.add(check, Skipped, "", format, args...) }

// Split takes joined errors apart.
func Split(err error) []error {
	if err == nil {
		return nil
	}
	var joined interface{ Unwrap() []error }
	if errors.As(err, &joined) && strings.Contains(err.Error(), "\n") {
		var list []error
		for _, e := range joined.Unwrap() {
			list = append(list, Split(e)...)
		}
		return list
	}
	return []error{err}
}
