package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/detect"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// initOptions are the flags of "etcd-backup init".
type initOptions struct {
	root, which, form, out string
	force, offline         bool
	program, image         string
	clusterName, store     string
	envFile                string
	clientURL              string
	files                  tlsFiles
	user, password         string
	more                   []string // flags for the sidecar, as they are
}

// The forms in which a sidecar can be started.
const (
	formPod   = "static-pod"
	formUnit  = "unit"
	formTalos = "talos"
)

// initMain looks at the machine and writes what starts the sidecar. It returns the exit code.
func initMain(ctx context.Context, args []string, out, errOut io.Writer) int {
	o, err := parseInit(args, errOut)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(errOut, "etcd-backup init: %v\n", err)
		return exitUsage
	}
	if err := o.run(ctx, out, errOut); err != nil {
		fmt.Fprintf(errOut, "etcd-backup init: %v\n", err)
		return exitFailure
	}
	return exitOK
}

func newInitFlags(o *initOptions, errOut io.Writer) *flag.FlagSet {
	f := flag.NewFlagSet("etcd-backup init", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.StringVar(&o.store, "backup-store", "", "where backups will be kept (required); each etcd cluster needs a store of its own")
	f.StringVar(&o.clusterName, "cluster-name", "etcd", "name for the etcd cluster")
	f.StringVar(&o.which, "etcd", "", "which etcd, if there are several: what runs it (kubeadm, k3s, rke2, talos, systemd), its unit, or the file that was found")
	f.StringVar(&o.form, "form", "", "what to write: static-pod, unit, or talos for a patch of its machine configuration (default: what fits)")
	f.StringVar(&o.out, "out", "", "file to write (default: standard output)")
	f.BoolVar(&o.force, "force", false, "overwrite the file, and write it even if something is missing")
	f.BoolVar(&o.offline, "offline", false, "don't ask etcd whether it takes the certificate or the user")
	f.StringVar(&o.root, "root", "/", "directory below which the machine's files are, for example the machine's root in a container")
	f.StringVar(&o.program, "program", "", "path of this program in the unit (default: where it is)")
	f.StringVar(&o.image, "image", "etcd-manager:latest", "image of the container, for a pod")
	f.StringVar(&o.envFile, "env-file", "", "file of the machine with KEY=VALUE lines, such as the store's credentials")
	f.StringVar(&o.clientURL, "client-url", "", "etcd's client URL, instead of the one that is found")
	f.StringVar(&o.files.ca, "client-ca-file", "", "CA of etcd's certificate, instead of the one that is found")
	f.StringVar(&o.files.cert, "client-cert-file", "", "certificate to show to etcd, instead of the one that is found")
	f.StringVar(&o.files.key, "client-key-file", "", "key of that certificate")
	f.StringVar(&o.user, "client-user", "", "user of etcd, if it has users and the certificate's name is none of them")
	f.StringVar(&o.password, "client-password-file", "", "file with the password of --client-user")
	f.Usage = func() {
		fmt.Fprintln(errOut, "etcd-backup init --backup-store=URL [flags] [-- flags of etcd-backup]\n\n"+
			"Finds the etcd of this machine, and writes the manifest or unit that backs it up.")
		f.PrintDefaults()
	}
	return f
}

func parseInit(args []string, errOut io.Writer) (initOptions, error) {
	var o initOptions
	f := newInitFlags(&o, errOut)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	o.more = f.Args()
	switch {
	case o.store == "":
		return o, errors.New("--backup-store is required")
	case !slices.Contains([]string{"", formPod, formUnit, formTalos}, o.form):
		return o, fmt.Errorf("--form=%s: want %s, %s or %s", o.form, formPod, formUnit, formTalos)
	case (o.files.cert == "") != (o.files.key == ""):
		return o, errors.New("--client-cert-file and --client-key-file belong together")
	case !filepath.IsAbs(o.root):
		return o, fmt.Errorf("--root=%s: want an absolute path", o.root)
	}
	if o.program == "" {
		exe, err := os.Executable()
		if err != nil {
			return o, fmt.Errorf("find this program; name it with --program: %w", err)
		}
		o.program = exe
	}
	return o, nil
}

// run looks, tells what it has found, and writes.
func (o *initOptions) run(ctx context.Context, out, errOut io.Writer) error {
	e, err := o.find()
	if err != nil {
		return err
	}
	form := cmp.Or(o.form, map[detect.Kind]string{detect.Kubeadm: formPod, detect.Talos: formTalos}[e.Kind], formUnit)
	sidecar := o.flags(e)
	// What is written must be what this program takes.
	known := slices.DeleteFunc(slices.Clone(sidecar), func(a string) bool {
		return strings.HasPrefix(a, "--env-file=") // it isn't needed here
	})
	parsed, err := parse(known, os.Getenv, errOut)
	if err != nil {
		return fmt.Errorf("the sidecar wouldn't take its flags: %w", err)
	}
	if err := o.check(e, form, sidecar, parsed); err != nil {
		return err
	}
	o.envMissing(&e)
	if len(e.Missing) == 0 && !o.offline {
		o.ask(ctx, &e)
	}
	o.report(errOut, e)
	if len(e.Missing) > 0 && !o.force {
		return errors.New("nothing was written, because something is missing (--force writes it anyway)")
	}
	text := o.render(e, form, sidecar, o.places(e, parsed))
	if o.out == "" {
		if _, err := io.WriteString(out, text); err != nil {
			return err
		}
	} else if err := o.write(text, form); err != nil {
		return err
	}
	o.next(errOut, form, sidecar)
	return nil
}

// find looks for the etcd, and puts in what the flags say of it.
func (o *initOptions) find() (detect.Etcd, error) {
	now := time.Now()
	list, err := detect.Look(o.root, now)
	if err != nil && (!errors.Is(err, detect.ErrNoEtcd) || o.clientURL == "") {
		return detect.Etcd{}, err
	}
	var e detect.Etcd
	if len(list) > 0 {
		if e, err = detect.Choose(list, o.which); err != nil {
			return e, err
		}
	} else {
		e = detect.Etcd{Kind: "unknown", Where: "--client-url"}
	}
	if o.clientURL == "" && o.files == (tlsFiles{}) {
		return e, nil
	}
	e.URL = cmp.Or(o.clientURL, e.URL)
	e.CA = cmp.Or(o.files.ca, e.CA)
	if o.files.cert != "" {
		e.Cert, e.Key = o.files.cert, o.files.key
	}
	detect.Check(o.root, now, &e)
	return e, nil
}

// withTLS tells whether etcd speaks TLS. There may be several URLs, which are all with TLS or all without.
func withTLS(e detect.Etcd) bool {
	first, _, _ := strings.Cut(e.URL, ",")
	secure, _ := isURL(first)
	return secure
}

// flags are the sidecar's.
func (o *initOptions) flags(e detect.Etcd) []string {
	list := []string{"--cluster-name=" + o.clusterName, "--backup-store=" + o.store, "--client-url=" + e.URL}
	add := func(name, value string) {
		if value != "" {
			list = append(list, "--"+name+"="+value)
		}
	}
	if withTLS(e) {
		add("client-ca-file", e.CA)
		add("client-cert-file", e.Cert)
		add("client-key-file", e.Key)
	}
	add("client-user", o.user)
	add("client-password-file", o.password)
	add("env-file", o.envFile)
	add("data-dir", dataDir)
	return append(list, o.more...)
}

// askTimeout bounds the question whether etcd takes the certificate and the user.
const askTimeout = 10 * time.Second

// ask finds out whether etcd takes the certificate and the user, and whether they are enough.
func (o *initOptions) ask(ctx context.Context, e *detect.Etcd) {
	at := func(path string) string {
		if path == "" {
			return ""
		}
		return filepath.Join(o.root, path)
	}
	missing := func(do string, err error) {
		e.Missing = append(e.Missing, detect.Missing{What: err.Error(), Do: do})
	}
	files := tlsFiles{ca: at(e.CA), cert: at(e.Cert), key: at(e.Key)}
	if !withTLS(*e) {
		files = tlsFiles{}
	}
	urls := strings.Split(e.URL, ",")
	conf, err := files.config(urls...)
	if err != nil {
		missing("give other files: --client-ca-file, --client-cert-file, --client-key-file", err)
		return
	}
	user := options{user: o.user, password: at(o.password)}.etcdUser()
	c, err := etcdclient.DialAs(urls, conf, user)
	if err != nil {
		missing("give another one with --client-url", err)
		return
	}
	defer func() { _ = c.Close() }() // it was only asked
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	if err = c.Permitted(ctx); errors.Is(err, etcdclient.ErrUnsupported) {
		err = nil // a learner, which can't say
	}
	switch {
	case errors.Is(err, etcdclient.ErrDenied):
		missing("do that, or name a user that has the role root: --client-user=NAME --client-password-file=FILE", err)
	case err != nil:
		missing("start etcd, or leave this question out with --offline", err)
	}
}

// report says what was found, and what is missing.
func (o *initOptions) report(w io.Writer, e detect.Etcd) {
	line := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-12s %s\n", name, value)
		}
	}
	line("etcd", fmt.Sprintf("of %s (%s)", e.Kind, e.Where))
	line("run by", e.Unit)
	line("client URL", e.URL)
	line("data dir", e.DataDir)
	line("CA", e.CA)
	line("certificate", e.Cert)
	switch {
	case o.user != "":
		line("user", o.user+" with the password in "+o.password)
	case e.Name != "":
		line("user", e.Name+" (the certificate's name), if etcd has users")
	}
	for _, m := range e.Missing {
		fmt.Fprintf(w, "missing      %s\n             %s\n", m.What, m.Do)
	}
}

// envMissing says that the env file isn't there: a pod doesn't start without it.
func (o *initOptions) envMissing(e *detect.Etcd) {
	if o.envFile == "" {
		return
	}
	if _, err := os.Stat(filepath.Join(o.root, o.envFile)); err != nil {
		e.Missing = append(e.Missing, detect.Missing{What: "the env file " + o.envFile + " isn't there",
			Do: "write it for root only (chmod 600), with lines such as AWS_ACCESS_KEY_ID=…"})
	}
}

// write writes the file, which must not be there unless it may be overwritten.
func (o *initOptions) write(text, form string) error {
	perm, write := fs.FileMode(0o600), atomicfile.Create
	if form == formUnit {
		perm = 0o644
	}
	if o.force {
		write = atomicfile.Write
	}
	err := write(o.out, []byte(text), perm)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("--out=%s is there already and was left as it is (--force overwrites it)", o.out)
	}
	if err != nil {
		return fmt.Errorf("--out: %w", err)
	}
	return nil
}

// next says how to go on.
func (o *initOptions) next(w io.Writer, form string, sidecar []string) {
	switch {
	case o.out == "" && form == formPod:
		fmt.Fprintln(w, "next         write it on this machine with --out=/etc/kubernetes/manifests/etcd-backup.yaml, where the kubelet starts it")
	case o.out == "" && form == formUnit:
		fmt.Fprintln(w, "next         write it with --out=/etc/systemd/system/etcd-backup.service, then: systemctl enable --now etcd-backup")
	case form == formPod:
		fmt.Fprintln(w, "next         the kubelet starts it if the file is in its directory; kubectl -n kube-system logs -l app.kubernetes.io/name=etcd-backup")
	case form == formUnit:
		name := strings.TrimSuffix(filepath.Base(o.out), ".service")
		fmt.Fprintf(w, "next         systemctl daemon-reload && systemctl enable --now %s && journalctl -fu %s\n", name, name)
	case form == formTalos:
		fmt.Fprintf(w, "next         talosctl patch machineconfig --nodes CONTROL-PLANE-NODES --patch @%s\n", cmp.Or(o.out, "FILE"))
	}
	fmt.Fprintf(w, "manually     %s %s\n", shellWord(o.program), shellWords(sidecar))
}
