package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/discovery/seeds"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/preflight"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

const (
	// checkSmall bounds one request to the store, checkAttempts how often one is repeated: a person waits.
	checkSmall    = 10 * time.Second
	checkAttempts = 2
)

const checkHelp = `etcd-manager check looks at this machine before the first start of the manager, and says all that is wrong at once, each
with what to do. Give it the flags, and the environment, that the manager will have. It changes nothing: in the store it writes a
small object and removes it. The exit code is 0 if nothing must be repaired, and 1 otherwise.

usage: etcd-manager check [-o json] [flags of etcd-manager]

example: etcd-manager check --cluster-name=etcd --data-dir=/var/lib/etcd-manager --address=10.0.0.1 --backup-store=s3://bucket/prefix

etcd-manager --help lists the flags.
`

// checkMain is "check".
func checkMain(args, environ []string, out, errOut io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	// A warning of the daemon's log would stand in the middle of the result.
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	return checker{args: args, environ: environ, out: out, errOut: errOut, now: time.Now, sync: preflight.MeasureSync}.run(ctx)
}

// checker is one run of "check". now and sync are what a test can't make otherwise: a wrong clock and a slow disk.
type checker struct {
	args, environ []string
	out, errOut   io.Writer
	now           func() time.Time
	sync          func(ctx context.Context, dir string) (preflight.Speed, error)
}

func (k checker) run(ctx context.Context) int {
	o := &options{env: map[string]string{}}
	output, errs := o.parseAll(k.args, k.environ)
	switch {
	case len(errs) > 0 && errors.Is(errs[0], flag.ErrHelp):
		fmt.Fprint(k.out, checkHelp)
		return exitOK
	case output != "" && output != "json":
		fmt.Fprintf(k.errOut, "etcd-manager check: --output=%s is not possible: use json\n", output)
		return exitUsage
	}
	found := append(flagFindings(errs), k.preflight(ctx, o)...)
	if output == "json" {
		e := json.NewEncoder(k.out)
		e.SetIndent("", "  ")
		e.SetEscapeHTML(false)
		if err := e.Encode(map[string]any{"ok": preflight.OKAll(found), "findings": found}); err != nil {
			fmt.Fprintf(k.errOut, "etcd-manager check: print: %v\n", err)
			return exitError
		}
	} else {
		printFindings(k.out, found)
	}
	if !preflight.OKAll(found) {
		return exitError
	}
	return exitOK
}

// parseAll is parseOptions that doesn't stop at the first mistake.
func (o *options) parseAll(args, environ []string) (output string, errs []error) {
	f := newFlags(o)
	f.StringVar(&output, "output", "", "")
	f.StringVar(&output, "o", "", "")
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	for rest := args; ; {
		err := f.Parse(rest)
		rest = f.Args()
		switch {
		case errors.Is(err, flag.ErrHelp):
			return output, []error{err}
		case err != nil:
			better := spelling.Unknown(f, err)
			if better.Error() != err.Error() && len(rest) > 0 && !strings.HasPrefix(rest[0], "-") {
				rest = rest[1:] // its value
			}
			errs = append(errs, better)
			continue
		case len(rest) > 0:
			errs = append(errs, fmt.Errorf("unexpected argument %q; all settings are flags (see --help)", rest[0]))
			rest = rest[1:]
			continue
		}
		return output, append(errs, preflight.Split(o.complete(f, environ))...)
	}
}

// flagFindings makes findings out of what is wrong with flags and environment. Most messages say what to do behind a semicolon or a colon.
func flagFindings(errs []error) []preflight.Finding {
	if len(errs) == 0 {
		return []preflight.Finding{{Check: "flags", Level: preflight.OK, Text: "flags and environment are good"}}
	}
	var found []preflight.Finding
	for _, err := range errs {
		text, do, ok := strings.Cut(err.Error(), "; ")
		if !ok {
			if text, do, ok = strings.Cut(err.Error(), " is missing: "); ok {
				text, do = text+" is missing", "give "+do
			}
		}
		if !ok {
			do = "correct it in the flags, the environment or the env file; docs/flags.md describes each"
		}
		found = append(found, preflight.Finding{Check: "flags", Level: preflight.Problem, Text: text, Do: do})
	}
	return found
}

func printFindings(out io.Writer, found []preflight.Finding) {
	counts := map[preflight.Level]int{}
	for _, f := range found {
		counts[f.Level]++
		fmt.Fprintf(out, "%-8s %-13s %s\n", f.Level, f.Check, f.Text)
		if f.Do != "" {
			fmt.Fprintf(out, "%-8s %-13s do: %s\n", "", "", f.Do)
		}
	}
	count := func(n int, word string) string {
		if n == 1 {
			return "1 " + word
		}
		return fmt.Sprintf("%d %ss", n, word)
	}
	problems, warnings := counts[preflight.Problem], counts[preflight.Warning]
	switch {
	case problems > 0:
		fmt.Fprintf(out, "%s and %s. Repair the problems before the manager is started.\n", count(problems, "problem"), count(warnings,
			"warning"))
	case warnings > 0:
		fmt.Fprintf(out, "No problem, and %s. The manager can be started.\n", count(warnings, "warning"))
	default:
		fmt.Fprintln(out, "Nothing is wrong. The manager can be started.")
	}
}

// preflight runs the checks for these options.
func (k checker) preflight(ctx context.Context, o *options) []preflight.Finding {
	c := preflight.Config{
		ClusterName: o.clusterName, AddressGiven: o.addressGiven, DataDir: o.dataDir, Mounted: o.volumeProvider == providerExternal,
		StoreURL: o.backupStore, AllowUnfenced: o.allowUnfenced, PKIDir: o.pkiDir,
		Now: k.now, Lookup: lookupHost, Sync: k.sync, Others: map[string][]string{},
	}
	c.Machine, _ = os.Hostname()
	c.Quota, _ = strconv.ParseInt(o.env["ETCD_QUOTA_BACKEND_BYTES"], 10, 64)
	if a, err := netip.ParseAddr(o.address); err == nil && (o.addressGiven || o.volumeProvider != providerAWS && !o.prepared()) {
		c.Address = a
	}
	if o.dataDir == "" && (o.volumeProvider == providerAWS || o.prepared()) {
		c.Later = "the data dir is on a volume that the manager finds at its start"
	}
	if o.usesNames() {
		c.HostsFile = o.hostsFile
	}
	c.Listeners = o.listeners()
	c.Names = o.hostNames()
	if o.static != nil {
		c.Members, c.Version = len(o.static.Nodes), o.static.EtcdVersion
	}
	if exe, err := os.Executable(); err == nil && strings.HasPrefix(o.etcdBinaries, "/") {
		c.Binaries = &process.Binaries{Roots: strings.Split(o.etcdBinaries, ","), Self: exe}
	}
	if !o.dev { // --dev makes them
		c.CAs = o.neededCAs()
	}
	keys, keyFindings := o.keys()
	o.openForCheck(ctx, &c, keys)
	o.openPlaces(ctx, &c)
	seedFindings := o.others(ctx, &c)
	c.Dial = o.dialer()
	return slices.Concat(preflight.Run(ctx, c), seedFindings, keyFindings, probeSealer(ctx, c.Catalog))
}

func (o *options) neededCAs() (names []string) {
	if !o.insecure {
		names = append(names, pki.ManagerCA)
	}
	if !o.etcdInsecure {
		names = append(names, pki.PeersCA, pki.ClientsCA)
	}
	return names
}

// listeners are the ports that the manager and its etcd will take.
func (o *options) listeners() []preflight.Listener {
	var list []preflight.Listener
	if o.grpcPort > 0 && o.grpcPort <= 65535 { // else the flags are wrong, which is said
		list = append(list, preflight.Listener{Setting: "--grpc-port", Host: o.address, Port: strconv.Itoa(o.grpcPort)})
	}
	if o.metricsPort > 0 && o.metricsPort <= 65535 {
		list = append(list, preflight.Listener{Setting: "--etcd-manager-metrics-port", Host: o.address, Port: strconv.Itoa(o.metricsPort)})
	}
	for _, t := range []struct{ flag, value string }{{"--peer-urls", o.peerURLs}, {"--client-urls", o.clientURLs},
		{"--quarantine-client-urls", o.quarantine}} {
		urls, err := o.expand(t.value, "name")
		if err != nil {
			continue // a mistake in the flags, which is said
		}
		for _, s := range urls {
			if u, err := url.Parse(s); err == nil {
				list = append(list, preflight.Listener{Setting: t.flag, Host: o.etcdAddress, Port: u.Port()})
			}
		}
	}
	for _, s := range o.etcdMetricsURLs() {
		if u, err := url.Parse(s); err == nil && u.Port() != "" {
			list = append(list, preflight.Listener{Setting: "--listen-metrics-urls", Host: u.Hostname(), Port: u.Port()})
		}
	}
	return list
}

// hostNames are the names that are written in flags. Those that the manager makes itself are in the hosts file once it runs.
func (o *options) hostNames() []string {
	var names []string
	for _, urls := range []string{o.peerURLs, o.clientURLs, o.quarantine} {
		for s := range strings.SplitSeq(urls, ",") {
			if strings.Contains(s, "__name__") || strings.Contains(s, "__address__") {
				continue
			}
			u, err := url.Parse(strings.TrimSpace(s))
			if err != nil || u.Hostname() == "" || net.ParseIP(u.Hostname()) != nil {
				continue
			}
			names = append(names, u.Hostname())
		}
	}
	if o.static != nil {
		for name := range o.static.names() {
			names = append(names, name)
		}
	}
	return names
}

// openForCheck opens the store with less patience than the daemon has.
func (o *options) openForCheck(ctx context.Context, c *preflight.Config, keys catalog.Option) {
	if o.backupStore == "" {
		return
	}
	s, err := connect.Open(ctx, o.backupStore, func(k string) string { return o.env[k] }, connect.WriteAs(o.writing))
	if err != nil {
		c.StoreErr = err
		return
	}
	if u, err := url.Parse(o.backupStore); err == nil && (u.Scheme == "" || u.Scheme == "file") {
		c.StoreDir = filepath.Clean(u.Path)
	}
	limited := blob.WithTimeouts(blob.Detach(s), blob.Timeouts{Small: checkSmall, Idle: checkSmall, Purge: checkSmall})
	c.Store = blob.Retry(limited, blob.RetryPolicy{Attempts: checkAttempts})
	var options []catalog.Option
	if keys != nil {
		options = append(options, keys)
	}
	c.Catalog = catalog.New(c.Store, options...)
}

// openPlaces opens the other stores that the flags name, for reading.
func (o *options) openPlaces(ctx context.Context, c *preflight.Config) {
	open := func(flag, url string, env func(string) string) preflight.Place {
		s, err := connect.Open(ctx, url, env)
		if err != nil {
			return preflight.Place{URL: url, Err: fmt.Errorf("%s: %w", flag, err)}
		}
		limited := blob.WithTimeouts(blob.Detach(s), blob.Timeouts{Small: checkSmall, Idle: checkSmall, Purge: checkSmall})
		return preflight.Place{URL: url, Store: blob.ReadOnly(blob.Retry(limited, blob.RetryPolicy{Attempts: checkAttempts}))}
	}
	for _, url := range o.copies.urls {
		if url != "" { // which is said
			c.Copies = append(c.Copies, open("--backup-store-copy", url, func(k string) string { return copyEnv(o.env, k) }))
		}
	}
	if o.standbyOf != "" {
		c.StandbyOf = open("--standby-of", o.standbyOf, func(k string) string { return o.env[k] })
	}
}

// keys reads the keys that backups are sealed and opened with.
func (o *options) keys() (catalog.Option, []preflight.Finding) {
	keys, err := (&daemon{o: o}).openKeys()
	if err == nil {
		return keys, nil
	}
	return nil, []preflight.Finding{{Check: "encryption", Level: preflight.Problem, Text: err.Error(),
		Do: "correct the keys as docs/encryption.md says"}}
}

// probeSealer encrypts and decrypts a few bytes.
func probeSealer(ctx context.Context, c *catalog.Catalog) []preflight.Finding {
	if c == nil || c.Sealer() == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, keysTimeout)
	defer cancel()
	_, ids := c.Sealer().Info()
	f := preflight.Finding{Check: "encryption"}
	sealed, err := envelope.Probe(ctx, c.Sealer(), c.Opener())
	switch {
	case err == nil:
		f.Level, f.Text = preflight.OK, "backups are encrypted for "+strings.Join(ids, ", ")+", and can be opened here"
	case !sealed:
		f.Level, f.Text, f.Do = preflight.Problem, fmt.Sprintf("backups can't be encrypted: %v", err),
			"allow this machine to use the key (docs/encryption.md)"
	case errors.Is(err, envelope.ErrNoKey):
		f.Level, f.Text = preflight.Warning, "backups are encrypted for "+strings.Join(ids,
			", ")+", and this machine has no key to open them: it can't restore"
		f.Do = "give the secret key with --backup-identity, if it is to restore by itself"
	default:
		f.Level, f.Text = preflight.Problem, fmt.Sprintf("backups can be encrypted, but not opened: %v", err)
		f.Do = "allow this machine to open with the key (docs/encryption.md)"
	}
	return []preflight.Finding{f}
}

// others are the managers that the flags name.
func (o *options) others(ctx context.Context, c *preflight.Config) []preflight.Finding {
	if o.static != nil {
		for _, n := range o.static.Nodes {
			if slices.Contains(n.IP, o.address) {
				continue
			}
			for _, host := range n.IP {
				c.Others[n.ID] = append(c.Others[n.ID], net.JoinHostPort(strings.Trim(host, "[]"), strconv.Itoa(o.grpcPort)))
			}
		}
	}
	if o.seeds == "" {
		return nil
	}
	found, err := seeds.New(o.seeds).Find(ctx)
	for id, endpoints := range found {
		c.Others[string(id)] = endpoints
	}
	if err == nil {
		return nil
	}
	return []preflight.Finding{{Check: "managers", Level: preflight.Warning, Text: "--seeds-dir: " + err.Error(),
		Do: "correct the directory; the manager reads it again every few seconds"}}
}

// dialer connects to other managers as a manager does; nil if there are no certificates for that, which is said elsewhere.
func (o *options) dialer() func(ctx context.Context, node, endpoint string) error {
	if o.insecure {
		return func(ctx context.Context, _, endpoint string) error {
			conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", endpoint)
			if err == nil {
				conn.Close()
			}
			return err
		}
	}
	k, err := pki.NewKeeper(pki.Config{Dir: o.pkiDir, NodeID: "check", Managers: true, Policy: pki.DefaultPolicy()})
	if err != nil {
		return nil
	}
	return func(ctx context.Context, node, endpoint string) error {
		conn, err := (&tls.Dialer{Config: k.ManagerClient(node)}).DialContext(ctx, "tcp", endpoint)
		if err == nil {
			conn.Close()
		}
		return err
	}
}
