package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/internal/testutil/machine"
)

var update = flag.Bool("update", false, "write the files of contrib/etcd-backup again")

const contrib = "../../contrib/etcd-backup"

// runInit runs "etcd-backup init" for a machine.
func runInit(t *testing.T, root string, args ...string) (code int, out, said string) {
	t.Helper()
	var o, e bytes.Buffer
	code = initMain(t.Context(), append([]string{"--root=" + root, "--program=/usr/local/bin/etcd-backup"}, args...), &o, &e)
	return code, o.String(), e.String()
}

// TestContrib: what contrib/etcd-backup has is what init writes on each kind of machine. With -update it is written again.
func TestContrib(t *testing.T) {
	const url = "https://127.0.0.1:2379"
	for name, lay := range map[string]func(root string){
		"kubeadm.yaml": func(root string) { machine.Kubeadm(t, root, url, "https://127.0.0.1:2380") },
		"k3s.service":  func(root string) { machine.Rancher(t, root, "k3s", url) },
		"rke2.service": func(root string) { machine.Rancher(t, root, "rke2", url) },
		"etcd.service": func(root string) { machine.Unit(t, root, url) },
		"talos.yaml":   func(root string) { machine.Talos(t, root) },
	} {
		root := t.TempDir()
		lay(root)
		args := []string{"--offline", "--cluster-name=my-cluster", "--backup-store=s3://my-bucket/my-cluster/etcd"}
		if name != "talos.yaml" { // it has no files of people
			machine.Write(t, root, "/etc/etcd-manager/backup-env", "AWS_REGION=eu-west-1\n")
			args = append(args, "--env-file=/etc/etcd-manager/backup-env")
		}
		code, out, said := runInit(t, root, args...)
		if code != exitOK || strings.Contains(said, "missing") || strings.Contains(out, root) {
			t.Fatalf("%s: code %d\n%s\n%s", name, code, said, out)
		}
		path := filepath.Join(contrib, name)
		if *update {
			must(t, os.MkdirAll(contrib, 0o755))
			must(t, os.WriteFile(path, []byte(out), 0o644))
		}
		kept, err := os.ReadFile(path)
		must(t, err)
		if out != string(kept) {
			t.Errorf("%s isn't what init writes (go test ./cmd/etcd-backup -run TestContrib -update):\n%s", path, out)
		}
		if !strings.Contains(said, "manually     /usr/local/bin/etcd-backup --cluster-name=my-cluster") {
			t.Errorf("%s: the command isn't said:\n%s", name, said)
		}
	}
}

// TestInitWrites: a file that is there stays, unless it may be overwritten.
func TestInitWrites(t *testing.T) {
	root := t.TempDir()
	machine.Unit(t, root, "https://127.0.0.1:2379")
	out := filepath.Join(t.TempDir(), "etcd-backup.service")
	args := []string{"--backup-store=/srv/100% of it", "--out=" + out, "--offline", "--client-user=it's", "--client-password-file=/etc/pass word",
		"--", "--metrics-port=8081", "--s3-tag=a=$b"}
	code, _, said := runInit(t, root, args...)
	text, err := os.ReadFile(out)
	must(t, err)
	for _, want := range []string{`"--backup-store=/srv/100%% of it"`, `ReadWritePaths="/srv/100%% of it"`, "After=network-online.target etcd.service",
		`--client-user=it's"`, `"--client-password-file=/etc/pass word"`, "--metrics-port=8081", "--s3-tag=a=$$b"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("the unit lacks %s:\n%s", want, text)
		}
	}
	if code != exitOK || !strings.Contains(said, "systemctl enable --now etcd-backup") || !strings.Contains(said, `'--client-user=it'\''s'`) {
		t.Errorf("code %d\n%s", code, said)
	}
	must(t, os.WriteFile(out, []byte("mine"), 0o600))
	code, _, said = runInit(t, root, args...)
	if left, _ := os.ReadFile(out); code != exitFailure || string(left) != "mine" || !strings.Contains(said, "--force overwrites it") {
		t.Errorf("code %d, left %q\n%s", code, left, said)
	}
	if code, _, said = runInit(t, root, slices.Insert(slices.Clone(args), 0, "--force")...); code != exitOK {
		t.Errorf("--force: code %d\n%s", code, said)
	}
	if left, _ := os.ReadFile(out); string(left) != string(text) {
		t.Errorf("--force left %q", left)
	}
}

// TestInitRefuses: bad flags, and machines on which a sidecar wouldn't work.
func TestInitRefuses(t *testing.T) {
	whole := t.TempDir()
	machine.Kubeadm(t, whole, "https://127.0.0.1:1", "https://127.0.0.1:2380")
	two := t.TempDir()
	machine.Kubeadm(t, two, "https://127.0.0.1:2379", "https://127.0.0.1:2380")
	machine.Unit(t, two, "https://127.0.0.1:4379")
	broken := t.TempDir()
	machine.Kubeadm(t, broken, "https://127.0.0.1:2379", "https://127.0.0.1:2380")
	must(t, os.Remove(filepath.Join(broken, "/etc/kubernetes/pki/etcd/ca.crt")))
	for _, c := range []struct {
		root string
		args []string
		code int
		want string
	}{
		{whole, nil, exitUsage, "--backup-store is required"},
		{whole, []string{"--backup-store=/b", "--form=x"}, exitUsage, "static-pod"},
		{whole, []string{"--backup-store=/b", "--offline", "--", "--intervall=1m"}, exitFailure, "intervall"},
		{whole, []string{"--backup-store=/b", "--offline", "--client-user=x"}, exitFailure, "--client-password-file"},
		{whole, []string{"--backup-store=/b", "--offline", "--env-file=/gone"}, exitFailure, "the env file /gone isn't there"},
		{whole, []string{"--backup-store=/b", "--offline", "--client-cert-file=/gone", "--client-key-file=/gone"}, exitFailure, "/gone"},
		{whole, []string{"--backup-store=/b"}, exitFailure, "start etcd, or leave this question out with --offline"},
		{two, []string{"--backup-store=/b"}, exitFailure, "2 etcds were found"},
		{broken, []string{"--backup-store=/b"}, exitFailure, "the CA can't be read"},
		{t.TempDir(), []string{"--backup-store=/b"}, exitFailure, "no etcd was found"},
	} {
		code, out, said := runInit(t, c.root, c.args...)
		if code != c.code || !strings.Contains(said, c.want) || out != "" {
			t.Errorf("%v: code %d, says\n%s\nwrites %q; want %d, %q", c.args, code, said, out, c.code, c.want)
		}
	}
	if code, out, _ := runInit(t, two, "--backup-store=/b", "--offline", "--etcd=systemd"); code != exitOK || !strings.Contains(out, ":4379") {
		t.Errorf("one of two: code %d\n%s", code, out)
	}
	if code, out, said := runInit(t, t.TempDir(), "--backup-store=/b", "--offline", "--client-url=unix:///run/etcd.sock", "--form=static-pod"); code != exitOK ||
		!strings.Contains(out, "mountPath: /run\n") {
		t.Errorf("an etcd that only a person knows: code %d\n%s\n%s", code, said, out)
	}
}

// TestInitPlaces: what a unit hides, what a pod has of its own, and what neither can hold, is refused with the reason.
func TestInitPlaces(t *testing.T) {
	root := t.TempDir()
	machine.Unit(t, root, "https://127.0.0.1:2379")
	pod := []string{"--form=static-pod", "--backup-store=s3://b/p"}
	unit := []string{"--form=unit", "--backup-store=s3://b/p"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{append(unit, "--program=/root/etcd-backup"), "--program): /root/etcd-backup: the unit hides /root"},
		{append(unit, "--program=/home/me/bin/etcd-backup"), "the unit hides /home"},
		{append(unit, "--program=/tmp/etcd-backup"), "the unit hides /tmp"},
		{append(unit, "--program=/var/tmp/etcd-backup"), "/usr/local/bin for a program"},
		{append(unit, "--program=etcd-backup"), "want an absolute path"},
		{append(unit, "--program=/opt/a$b"), "no $"},
		{append(unit, "--client-user=u", "--client-password-file=/root/p"), "--client-password-file: /root/p: the unit hides /root"},
		{append(unit, "--", "--backup-identity=/home/me/key"), "--backup-identity: /home/me/key: the unit hides /home"},
		{append(unit, "--", "--backup-encryption", "age:/tmp/r"), "--backup-encryption: /tmp/r: the unit hides /tmp"},
		{append(unit, "--backup-store=/home/backups"), "--backup-store: /home/backups: the unit hides /home from the program; use a place elsewhere, such as /var/backups/etcd"},
		{append(unit, "--backup-store=/var/lib/etcd-backup/store"), "the store must be elsewhere"},
		{append(unit, "--backup-store=/var/lib"), "the store must be elsewhere"},
		{append(unit, "--client-url=unix:///tmp/etcd.sock"), "etcd's socket: /tmp/etcd.sock: the unit hides /tmp"},
		{append(pod, "--backup-store=/etcd-backup"), "something of its own at /etcd-backup"},
		{append(pod, "--backup-store=file:///tmp"), "a /tmp of its own"},
		{append(pod, "--backup-store=/"), "a directory below /"},
		{append(pod, "--backup-store=/srv/../data"), "without . and .."},
		{append(pod, "--backup-store=/srv/a:b"), "with a colon"},
		{append(pod, "--client-user=u", "--client-password-file=/p"), "a file in a directory"},
		{append(pod, "--client-user=u", "--client-password-file=p"), "want an absolute path"},
		{append(pod, "--cluster-name=a\nb"), `"--cluster-name=a\nb" has a line break`},
		{append(unit, "--cluster-name=a\nExecStartPre=/bin/false"), "has a line break"},
		{append(unit, "--client-user=u\x1b", "--client-password-file=/etc/p"), "a control character"},
		{append(unit, "--", "--s3-tag=a=b\u0085c"), "a control character"},
		{append(pod, "--image=a\nb"), "has a line break"},
		{append(pod, "--cluster-name=\xff"), "isn't valid UTF-8"},
		{append(pod, "--", "--data-dir=/d"), "--data-dir: init sets this flag"},
		{append(pod, "--", "-client-url", "http://x:1"), "--client-url: init sets this flag"},
	} {
		code, out, said := runInit(t, root, append([]string{"--offline"}, c.args...)...)
		if code != exitFailure || !strings.Contains(said, c.want) || out != "" {
			t.Errorf("%q: code %d, says\n%s\nwrites %q; want %q", c.args, code, said, out, c.want)
		}
	}
}

// TestInitPodMounts: each path is mounted once, where it lies on the machine, and arguments arrive as they were given.
func TestInitPodMounts(t *testing.T) {
	root := t.TempDir()
	machine.Kubeadm(t, root, "https://127.0.0.1:2379", "https://127.0.0.1:2380")
	for store, want := range map[string]string{"/data": "/data", "/etc/kubernetes/pki/etcd": "/etc/kubernetes/pki/etcd", "file:///srv/x/": "/srv/x"} {
		code, out, said := runInit(t, root, "--offline", "--backup-store="+store, "--", "--s3-tag=a=$(HOSTNAME)", "--backup-identity=/etc/keys/a",
			"--backup-encryption=age:/etc/keys/r", "--backup-encryption=age:age1x", "--backup-identity=aws-kms:arn:aws:kms:eu-west-1:1:key/x")
		if code != exitOK {
			t.Fatalf("%s: code %d\n%s", store, code, said)
		}
		if !strings.Contains(out, `- "--s3-tag=a=$$(HOSTNAME)"`) || !strings.Contains(out, "mountPath: /etc/keys\n      readOnly: true") {
			t.Errorf("%s:\n%s", store, out)
		}
		if !strings.Contains(out, "- name: store\n      mountPath: "+want+"\n    - name") {
			t.Errorf("%s isn't mounted for writing:\n%s", store, out)
		}
		seen := map[string]bool{}
		for line := range strings.Lines(out) {
			if path, ok := strings.CutPrefix(strings.TrimSpace(line), "mountPath: "); ok {
				if seen[path] {
					t.Errorf("%s: %s is mounted twice", store, path)
				}
				seen[path] = true
			}
		}
		if !seen[want] || !seen[dataDir] || !strings.Contains(out, "--data-dir="+dataDir) {
			t.Errorf("%s: mounted are %v", store, seen)
		}
	}
	if code, out, said := runInit(t, root, "--offline", "--backup-store=s3://b/p", "--client-url=https://10.0.0.1:2379,https://10.0.0.2:2379"); code != exitOK ||
		!strings.Contains(out, "--client-ca-file=") {
		t.Errorf("several members: code %d\n%s\n%s", code, said, out)
	}
}

// TestQuoting: no word becomes something else in YAML or in a unit.
func TestQuoting(t *testing.T) {
	for _, s := range []string{"true", "null", "no", "y", "1", "~", "", "- a", "a: b", "a #b", "*a", "&a", "!a", "{a}", "a:", "it's", `"`, `\`, "é", "\u200b", "0x1", "1e3"} {
		q := yamlString(s)
		if !strings.HasPrefix(q, `"`) {
			t.Errorf("%q is plain in YAML", s)
		}
		var got struct {
			V any `json:"v"`
		}
		if err := yaml.Unmarshal([]byte("v: "+q), &got); err != nil || got.V != s {
			t.Errorf("%q becomes %#v in YAML (%v)", s, got.V, err)
		}
	}
	for s, want := range map[string]string{"a b": `"a b"`, "100%": "100%%", "$x": "$$x", `a"b\`: `"a\"b\\"`, "": `""`, ";": `";"`} {
		if got := unitWord(s); got != want {
			t.Errorf("%q is %s in a unit; want %s", s, got, want)
		}
	}
	if got := unitPath(`/a "b" $c %d\`); got != `"/a \"b\" $c %%d\\"` {
		t.Errorf("a path: %s", got)
	}
}
