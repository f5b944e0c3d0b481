package preflight

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

const (
	// storeTime bounds everything that is asked of the store.
	storeTime = 30 * time.Second
	// A clock may differ from the store's by clockGood without a word. From clockBad on, stores begin to refuse requests, and points in
	// time mislead.
	clockGood = 3 * time.Second
	clockBad  = 5 * time.Minute
)

// store checks the store, and learns from it what is wanted.
func (r *run) store() {
	if r.StoreErr != nil {
		r.problem("store", "correct --backup-store, or the variables of the store (docs/flags.md)", "%v", r.StoreErr)
	}
	if r.Store == nil {
		return
	}
	if r.StoreDir != "" && !r.storeDir() {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, storeTime)
	defer cancel()
	if x := new(catalog.CopyError); errors.As(catalog.New(r.Store).RefuseCopy(ctx, r.StoreURL), &x) {
		r.problem("store", "give --backup-store the first store; if that is lost: etcd-manager-ctl --backup-store="+r.StoreURL+" use-copy",
			"%s is a copy of %s (cluster %s): no manager runs on a copy", r.StoreURL, x.Of, x.ClusterName)
		return
	}
	result, err := blob.Probe(ctx, r.Store, r.owner())
	for _, e := range Split(err) {
		r.problem("store", storeAdvice(e), "%s: %v", r.StoreURL, e)
	}
	switch {
	case err != nil:
	case !result.Fenced() && r.AllowUnfenced:
		r.warning("store", "", "%s ignores conditional puts, and --allow-unfenced-store is given: two leaders at the same time are "+
			"possible", r.StoreURL)
	case !result.Fenced():
		r.problem("store", "use a store with conditional puts (docs/s3-servers.md), or accept two leaders with --allow-unfenced-store",
			"%s ignores conditional puts: nothing would be formed or restored", r.StoreURL)
	default:
		r.ok("store", "%s: objects can be written, read, listed and deleted, and conditional puts hold", r.StoreURL)
	}
	if !result.Write || !result.Read || !result.Delete {
		r.skipped("clock", "the clock wasn't compared with the store's, as the store can't be used")
	} else {
		r.clock(ctx)
	}
	if result.Read && result.List {
		r.wanted(ctx)
	}
}

// owner is the part of a key under which this machine writes. Several machines may check at once, and what a check that was killed has
// left is
// removed by the next one of its machine.
func (r *run) owner() string {
	return "check-" + strings.Map(func(c rune) rune {
		if c == '-' || c == '.' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' {
			return c
		}
		return '-'
	}, r.Machine)
}

// storeAdvice says what helps against an error of the probe.
func storeAdvice(err error) string {
	text := err.Error()
	switch {
	case strings.Contains(text, "RequestTimeTooSkewed"):
		return "set this machine's clock: start chrony, systemd-timesyncd or ntpd"
	case strings.Contains(text, "does not exist"):
		return "create the bucket, or correct its name in --backup-store"
	case strings.Contains(text, "valid credentials"):
		return "correct the credentials: S3_ACCESS_KEY_ID and S3_SECRET_ACCESS_KEY, or AWS's variables, files or instance role"
	case errors.Is(err, blob.ErrDenied):
		return "grant the permission that the message names; docs/s3-servers.md lists all of them"
	case errors.Is(err, fs.ErrPermission):
		return "let the manager's user, which is usually root, write there"
	case errors.Is(err, blob.ErrTransient), errors.Is(err, context.DeadlineExceeded):
		return "check the address of the store (S3_ENDPOINT, AWS_REGION), DNS, routes and firewalls between this machine and it"
	}
	return "correct --backup-store, or the variables of the store (docs/flags.md)"
}

// storeDir checks the directory of a store in a file system. It tells whether it may be probed: a probe would make one that is missing.
func (r *run) storeDir() bool {
	info, err := os.Stat(r.StoreDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		at := existing(r.StoreDir)
		if unix.Access(at, unix.W_OK|unix.X_OK) != nil {
			r.problem("store", "create it for the manager's user, or correct --backup-store",
				"%s doesn't exist, and can't be made in %s", r.StoreDir, at)
			return false
		}
		r.warning("store", "mount the file system that holds it; if it is to be an ordinary directory, create it",
			"%s doesn't exist: the manager would make it on the disk of %s. The store wasn't probed", r.StoreDir, at)
		return false
	case err != nil:
		r.problem("store", "let the manager's user, which is usually root, read and write there", "--backup-store: %v", err)
		return false
	case !info.IsDir():
		r.problem("store", "give a directory with --backup-store", "%s is a file", r.StoreDir)
		return false
	}
	m := mountOf(r.StoreDir)
	switch shared := strings.HasPrefix(m.kind, "nfs") || m.kind == "ceph" || m.kind == "cifs" || strings.HasPrefix(m.kind, "fuse") ||
		m.kind == "9p" ||
		m.kind == "virtiofs" || m.kind == ""; {
	case strings.HasPrefix(m.kind, "nfs") && localLocks(m.options):
		r.problem("store", "mount it without nolock and local_lock (docs/bare-metal.md)",
			"%s is mounted with locks of this machine alone: the masters can't fence each other", m.point)
	case !shared && r.Members != 1:
		r.warning("store", "with several masters, mount one shared file system there on all of them (docs/bare-metal.md); with one "+
			"master, choose a disk other than etcd's", "%s is on a file system of this machine alone (%s): with its disk all backups "+
			"are lost", r.StoreDir,
			m.kind)
	}
	return true
}

// localLocks tells whether an NFS mount keeps its locks to itself.
func localLocks(options string) bool {
	for o := range strings.SplitSeq(options, ",") {
		if o == "nolock" || o == "local_lock=all" || o == "local_lock=flock" {
			return true
		}
	}
	return false
}

// clock compares this machine's clock with that of the store, by an object that is written.
func (r *run) clock(ctx context.Context) {
	prefix := blob.ProbePrefix + r.owner() + "/"
	key := prefix + r.Now().UTC().Format(time.RFC3339) + "-" + strings.ToLower(rand.Text())
	before := r.Now()
	_, err := r.Store.Put(ctx, key, strings.NewReader("clock"), blob.PutOptions{})
	after := r.Now()
	var info blob.Info
	if err == nil {
		info, err = r.Store.Stat(ctx, key)
	}
	_, rerr := blob.Remove(ctx, r.Store, prefix, func(string) bool { return true })
	if err = errors.Join(err, rerr); err != nil {
		r.skipped("clock", "the clock couldn't be compared with the store's: %v", err)
		return
	}
	r.found = append(r.found, judgeClock(skew(before, after, info.Modified)))
}

// skew is how far this machine's clock is ahead of the store's, which tells whole seconds; 0 if they may be the same.
func skew(before, after, stored time.Time) time.Duration {
	switch {
	case stored.Before(before.Add(-time.Second)):
		return before.Sub(stored)
	case stored.After(after.Add(time.Second)):
		return after.Sub(stored)
	}
	return 0
}

func judgeClock(ahead time.Duration) Finding {
	f := Finding{Check: "clock", Level: OK, Text: "this machine's clock and the store's agree"}
	word := "ahead of"
	if ahead < 0 {
		ahead, word = -ahead, "behind"
	}
	if ahead < clockGood {
		return f
	}
	f.Level, f.Do = Warning, "set this machine's clock: start chrony, systemd-timesyncd or ntpd"
	f.Text = fmt.Sprintf("this machine's clock is %s %s the store's: points in time of restores would be wrong by that",
		ahead.Round(time.Second), word)
	if ahead >= clockBad {
		f.Level = Problem
		f.Text += ", and S3 refuses requests from a quarter of an hour on"
	}
	return f
}

// wanted reads the spec, whether a cluster exists, and whose backups are there.
func (r *run) wanted(ctx context.Context) {
	if r.Members == 0 && r.StandbyOf.URL == "" {
		r.spec(ctx)
	}
	marker, _, err := r.Catalog.Marker(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
	case err != nil:
		r.problem("cluster", "repair the object as the message says", "%v", err)
	case r.StandbyOf.URL != "":
		r.problem("cluster", "give the standby a store of its own that is empty with --backup-store; if this node is to run the cluster, "+
			"leave --standby-of out", "%s has a cluster already (formed at %s)", r.StoreURL, marker.Time.UTC().Format(time.RFC3339))
	default:
		r.ok("cluster", "a cluster was formed with this store at %s: this node joins it", marker.Time.UTC().Format(time.RFC3339))
	}
	list, _, err := r.Catalog.LastBackups(ctx, r.Now(), 1)
	if err != nil || len(list.Backups) == 0 {
		return
	}
	newest := list.Backups[len(list.Backups)-1]
	m, err := r.Catalog.Manifest(ctx, newest.Name)
	if err == nil && m.ClusterName != "" && r.ClusterName != "" && m.ClusterName != r.ClusterName {
		r.problem("cluster", "correct --cluster-name or --backup-store; each etcd cluster needs a store of its own",
			"the newest backup in %s is of the cluster %q, and --cluster-name is %q", r.StoreURL, m.ClusterName, r.ClusterName)
	}
}

func (r *run) spec(ctx context.Context) {
	spec, _, err := r.Catalog.Spec(ctx)
	command := "etcd-manager-ctl --backup-store=" + r.StoreURL + " configure-cluster --member-count=3"
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		r.warning("cluster", "run once, on any machine: "+command, "%s has no cluster spec yet: the managers wait for it", r.StoreURL)
		return
	case err != nil:
		r.problem("cluster", "write it again: "+command, "the cluster spec can't be read: %v", err)
		return
	}
	if err := catalog.ValidateSpec(spec); err != nil {
		r.problem("cluster", "write it again: "+command, "the cluster spec in %s: %v", r.StoreURL, err)
		return
	}
	r.members = spec.MemberCount
	if r.version == "" {
		r.version = spec.EtcdVersion
	}
	version := "etcd " + spec.EtcdVersion
	if spec.EtcdVersion == "" {
		version = "the etcd that is compiled in"
	}
	r.ok("cluster", "the spec wants %d members with %s", spec.MemberCount, version)
}
