package settings

import (
	"flag"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

type many struct{ values *[]string }

func (m many) String() string   { return "" }
func (m many) Values() []string { return *m.values }
func (m many) Set(s string) error {
	*m.values = append(*m.values, s)
	return nil
}

// program is a small program's flags.
type program struct {
	name, store string
	interval    time.Duration
	port        int
	share       float64
	insecure    bool
	tags        []string
	flags       *flag.FlagSet
}

func newProgram() *program {
	p := &program{flags: flag.NewFlagSet("program", flag.ContinueOnError)}
	p.flags.SetOutput(io.Discard)
	p.flags.String(ConfigFlag, "", "the file")
	p.flags.StringVar(&p.name, "cluster-name", "", "the name")
	p.flags.StringVar(&p.store, "backup-store", "/backups", "the store")
	p.flags.DurationVar(&p.interval, "backup-interval", time.Minute, "the interval")
	p.flags.IntVar(&p.port, "grpc-port", 8000, "the port")
	p.flags.Float64Var(&p.share, "defrag-threshold", 0, "the share")
	p.flags.BoolVar(&p.insecure, "insecure", false, "no TLS")
	p.flags.Var(many{&p.tags}, "volume-tag", "a tag")
	return p
}

func write(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.yaml")
	testutil.Must(t, os.WriteFile(path, []byte(text), 0o600))
	testutil.Must(t, os.Chmod(path, mode))
	return path
}

// read has a program read a file.
func read(t *testing.T, text string, args ...string) (*program, Sources, error) {
	t.Helper()
	p := newProgram()
	testutil.Must(t, p.flags.Parse(append(args, "--config="+write(t, text, 0o640))))
	s, err := FromFile(p.flags)
	return p, s, err
}

const good = `# the cluster
cluster-name: main
backup-store: "s3://bucket/main"   # with a comment
backup-interval: 5m
grpc-port: 8010
defrag-threshold: 0.5
insecure: true
volume-tag:
- a=b
- 'c: d'
`

// TestConfig: every kind of value is read, however the lines end; the command line wins, for a whole list too.
func TestConfig(t *testing.T) {
	for name, text := range map[string]string{"LF": good, "CRLF": strings.ReplaceAll(good, "\n", "\r\n"), "BOM": "\ufeff" + good,
		"no newline at the end": strings.TrimSuffix(good, "\n"), "a document's marks": "---\n" + good + "...\n"} {
		p, _, err := read(t, text)
		if err != nil || p.name != "main" || p.store != "s3://bucket/main" || p.interval != 5*time.Minute || p.port != 8010 ||
			p.share != 0.5 || !p.insecure || !slices.Equal(p.tags, []string{"a=b", "c: d"}) {
			t.Errorf("%s: %+v, %v", name, p, err)
		}
	}
	p, _, err := read(t, good, "--volume-tag=mine", "--grpc-port=1", "--insecure=false")
	if err != nil || p.port != 1 || p.insecure || !slices.Equal(p.tags, []string{"mine"}) || p.name != "main" {
		t.Errorf("with flags: %+v, %v", p, err)
	}
	for _, empty := range []string{"", "\n", "# nothing\n", "---\n", "{}\n"} {
		if p, _, err := read(t, empty); err != nil || p.port != 8000 {
			t.Errorf("%q: %+v, %v", empty, p, err)
		}
	}
	if p, _, err := read(t, "volume-tag: one\ninsecure: false\n"); err != nil || !slices.Equal(p.tags, []string{"one"}) {
		t.Errorf("one value for a list: %+v, %v", p, err)
	}
}

// TestBadConfig: what is wrong is named with its line and the way out, and all of it at once.
func TestBadConfig(t *testing.T) {
	for text, want := range map[string][]string{
		"cluster-name: main\ngrpc-prot: 1\n":        {":2: grpc-prot is unknown; did you mean grpc-port?"},
		"--grpc-port: 1\n":                          {":1: --grpc-port is unknown; did you mean grpc-port?"},
		"grpc_port: 1\n":                            {":1: grpc_port is unknown; did you mean grpc-port?"},
		"frobnicate: 1\n":                           {":1: frobnicate is unknown; every key is the name of a flag"},
		"config: other.yaml\n":                      {":1: config can't be set in the file itself"},
		"grpc-port: 1\n# x\ngrpc-port: 2\n":         {":3: grpc-port is there a second time; it is in line 1 already"},
		"grpc-port: x\ninsecure: 5\n":               {":1: grpc-port: parse error", ":2: insecure: parse error"},
		"grpc-port: [1]\n":                          {":1: grpc-port takes one value, not a list"},
		"grpc-port: true\n":                         {":1: grpc-port takes no truth value"},
		"cluster-name: true\n":                      {"put the text in quotes"},
		"cluster-name:\n":                           {`:1: cluster-name has no value; write ""`},
		"cluster-name: {a: b}\n":                    {":1: cluster-name takes a value or a list of values, and no mappings"},
		"volume-tag:\n- a\n- {b: c}\n":              {":1: volume-tag takes a value or a list of values, and no mappings"},
		"volume-tag: [[a]]\n":                       {"and no mappings"},
		"backup-interval: 5 minutes\n":              {":1: backup-interval: parse error"},
		"backup-interval: 300\n":                    {":1: backup-interval: parse error"},
		"cluster-name: main\nbackup-st":             {"it isn't YAML, or only a part of it is there"},
		"cluster-name: \"main\nbackup-store: /x\n":  {"it isn't YAML, or only a part of it is there"},
		"volume-tag: [a, b\n":                       {"it isn't YAML, or only a part of it is there"},
		"cluster-name: main\n\tgrpc-port: 1\n":      {"it isn't YAML"},
		"cluster-name: \x00\n":                      {"it isn't YAML"},
		"cluster-name: \xff\xfe\n":                  {"it isn't YAML"},
		"cluster-name: a\n---\ncluster-name: b\n":   {"more than one document"},
		"- cluster-name\n":                          {":1: it must have lines like cluster-name: main"},
		"AWS_SECRET_ACCESS_KEY=hunter2hunter2\n":    {":1: it must have lines like"},
		"AWS_SECRET_ACCESS_KEY: hunter2hunter2\n":   {":1: AWS_SECRET_ACCESS_KEY is unknown"},
		"cluster-name: &hunter2hunter2 x\n":         {"anchors and aliases can't be used here"},
		"cluster-name: *hunter2hunter2\n":           {"anchors and aliases can't be used here"},
		"cluster-name: !!binary aHVudGVyMg==\n":     {"a value of the type !!binary can't be used here"},
		"? [a, b]\n: c\n":                           {":1: a key must be the name of a flag"},
		"cluster-name: a\n<<: {grpc-port: 1}\n":     {":2: << is unknown"},
		"x: " + strings.Repeat("y", maxConfig) + "": {"a configuration file isn't that long"},
	} {
		_, _, err := read(t, text)
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("%.60q: %v, wanted %q", text, err, w)
			}
		}
		if err != nil && (strings.Contains(err.Error(), "hunter2") || len(err.Error()) > 600) {
			t.Errorf("%.60q: the error repeats what stands in the file: %v", text, err)
		}
	}
}

// TestConfigOfOthers: a file that others can write, or that isn't there, isn't read.
func TestConfigOfOthers(t *testing.T) {
	try := func(path, want string) {
		t.Helper()
		p := newProgram()
		testutil.Must(t, p.flags.Parse([]string{"--config=" + path}))
		if _, err := FromFile(p.flags); err == nil || !strings.Contains(err.Error(), want) || p.name != "" {
			t.Errorf("%s: %v, %q", path, err, p.name)
		}
	}
	try(write(t, good, 0o666), "everybody can write it and decide what this program does; only its user and root may: chown it, and chmod go-w")
	if os.Geteuid() == 0 {
		try(write(t, good, 0o660), "the members of group 0 can write it")
		path := write(t, good, 0o600)
		testutil.Must(t, os.Chown(path, 12345, -1))
		try(path, "belongs to user 12345")
	}
	try(t.TempDir(), "is no regular file")
	try("/does/not/exist.yaml", "--config: open /does/not/exist.yaml: no such file")
	link := filepath.Join(t.TempDir(), "link")
	testutil.Must(t, os.Symlink(write(t, good, 0o666), link))
	try(link, "everybody can write it")
}

// TestShow: what is printed is a configuration file that means the same, says where each value comes from, and has no secrets.
func TestShow(t *testing.T) {
	p, s, err := read(t, "backup-store: s3://key:hunter2@bucket/main?token=hunter2\ninsecure: true\nvolume-tag: [a=b, 'true']\n",
		"--cluster-name=on", "--defrag-threshold=0.25")
	testutil.Must(t, err)
	var b strings.Builder
	testutil.Must(t, Show(&b, s.Settings(p.flags), []Variable{{"ETCD_X", "1", "environment"}}))
	for _, want := range []string{`cluster-name: "on" `, "# flag\n", `backup-store: "s3://bucket/main (user and parameters hidden)" `, ".yaml:1\n",
		"backup-interval: 1m0s ", "# default\n", "grpc-port: 8000 ", "insecure: true ", `volume-tag: ["a=b", "true"]`, ".yaml:3\n", "# ETCD_X=1"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("it doesn't say %q:\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "hunter2") {
		t.Errorf("it prints a secret:\n%s", b.String())
	}
	again, _, err := read(t, b.String())
	if err != nil || again.name != "on" || again.share != 0.25 || !again.insecure || !slices.Equal(again.tags, []string{"a=b", "true"}) ||
		again.interval != time.Minute {
		t.Errorf("read again: %+v, %v", again, err)
	}
	for value, want := range map[string]string{"https://host/path?x=hunter2": "https://host/(hidden)", "@/etc/url": "@/etc/url",
		"https://user:hunter2@host:8443/hunter2": "https://host:8443/(hidden)", "https://%zz/hunter2": "(hidden)"} {
		if have := Hide("webhook-url", value); have != want {
			t.Errorf("%s is shown as %s", value, have)
		}
	}
	if HideVariable("S3_SECRET_ACCESS_KEY", "hunter2") != "(hidden)" || HideVariable("ETCD_X", "y") != "y" {
		t.Error("variables are shown wrongly")
	}
}

// FuzzConfig: a file can be anything. What can't be read is said shortly, and a value is never repeated.
func FuzzConfig(f *testing.F) {
	path := filepath.Join(f.TempDir(), "config.yaml")
	f.Add([]byte(good))
	f.Add([]byte("cluster-name: \"main"))
	f.Add([]byte("grpc-port: 1\ngrpc-port: [\n"))
	f.Add([]byte("a: &x [*x, *x]\n"))
	f.Add([]byte(strings.Repeat("[", 20_000)))
	f.Fuzz(func(t *testing.T, data []byte) {
		testutil.Must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Cost{Fixed: 4 << 20, PerByte: 400}, func() error {
			_, err := readConfig(path)
			return err
		})
	})
}
