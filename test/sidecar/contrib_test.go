package sidecar

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

const contrib = "../../contrib/etcd-backup"

func read(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(contrib, name))
	testutil.Must(t, err)
	return string(data)
}

// TestContrib starts what contrib/etcd-backup has, with its own flags, beside a stock etcd. Only paths, ports and the store are others.
func TestContrib(t *testing.T) {
	n := newNode(t)
	for _, name := range []string{"kubeadm.yaml", "k3s.service", "rke2.service", "etcd.service", "talos.yaml", "kustomize"} {
		t.Run(name, func(t *testing.T) { n.backsUp(t, commandOf(t, name)) })
	}
}

// TestContribDataDir: what waits for the store lies in one place everywhere, so that a store in a directory, such as /data, is never in it.
func TestContribDataDir(t *testing.T) {
	const dir = "/var/lib/etcd-backup"
	for _, name := range []string{"kubeadm.yaml", "talos.yaml", "kustomize/daemonset.yaml", "helm/templates/daemonset.yaml"} {
		text := read(t, name)
		for _, want := range []string{"- --data-dir=" + dir + "\n", "- name: data\n", "mountPath: " + dir + "\n"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: %q isn't there", name, want)
			}
		}
		if strings.Contains(text, "mountPath: /data\n") {
			t.Errorf("%s mounts /data", name)
		}
	}
}

var withHelm = flag.Bool("helm", false, "TestChart, which builds Helm; that takes some minutes for the first time")

// TestChart is for the chart, as Helm renders it.
func TestChart(t *testing.T) {
	if !*withHelm {
		t.Skip("only with -helm: it builds Helm")
	}
	helm := servers.Binary(t, "helm")
	render := func(set ...string) (string, error) {
		args := []string{"template", "etcd-backup", filepath.Join(contrib, "helm"), "--namespace=kube-system"}
		for _, s := range set {
			args = append(args, "--set="+s)
		}
		out, err := exec.Command(helm, args...).CombinedOutput()
		return string(out), err
	}
	if out, err := render(); err == nil || !strings.Contains(out, "backupStore is required") {
		t.Errorf("without a store: %v\n%s", err, out)
	}
	out, err := render("backupStore=s3://my-bucket/my-cluster/etcd", "extraArgs={--interval=5m}")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	n := newNode(t)
	n.backsUp(t, podCommand(t, out))
	if out, err := exec.Command(helm, "lint", "--strict", "--set=backupStore=/x", filepath.Join(contrib, "helm")).CombinedOutput(); err != nil {
		t.Errorf("helm lint: %v\n%s", err, out)
	}
}

// commandOf is the command line of a file or a directory of contrib.
func commandOf(t *testing.T, name string) []string {
	t.Helper()
	switch {
	case strings.HasSuffix(name, ".service"):
		text := strings.ReplaceAll(read(t, name), "\\\n", " ")
		for line := range strings.Lines(text) {
			if command, ok := strings.CutPrefix(line, "ExecStart="); ok {
				return strings.Fields(command)
			}
		}
		t.Fatalf("%s starts nothing", name)
	case name == "talos.yaml":
		var patch struct {
			Machine struct {
				Pods []map[string]any `json:"pods"`
			} `json:"machine"`
		}
		testutil.Must(t, yaml.UnmarshalStrict([]byte(read(t, name)), &patch))
		if len(patch.Machine.Pods) != 1 {
			t.Fatalf("there are %d pods", len(patch.Machine.Pods))
		}
		text, err := yaml.Marshal(patch.Machine.Pods[0])
		testutil.Must(t, err)
		return podOf(t, text).Spec.Containers[0].Command
	case name == "kustomize":
		if _, err := exec.LookPath("kubectl"); err != nil {
			t.Skip("kubectl, which has kustomize in it, isn't installed here")
		}
		out, err := exec.Command("kubectl", "kustomize", filepath.Join(contrib, name)).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl kustomize: %v\n%s", err, out)
		}
		return podCommand(t, string(out))
	}
	return podOf(t, []byte(read(t, name))).Spec.Containers[0].Command
}

// podCommand is the command line of a daemon set among several objects, with the variables of their config map put in as the kubelet does.
func podCommand(t *testing.T, text string) []string {
	t.Helper()
	vars := map[string]string{}
	var command []string
	for doc := range strings.SplitSeq(text, "\n---\n") {
		var object struct {
			Kind string            `json:"kind"`
			Data map[string]string `json:"data"`
			Spec struct {
				Template struct {
					Spec struct {
						Containers []struct {
							Command []string `json:"command"`
						} `json:"containers"`
					} `json:"spec"`
				} `json:"template"`
			} `json:"spec"`
		}
		testutil.Must(t, yaml.Unmarshal([]byte(doc), &object))
		switch object.Kind {
		case "ConfigMap":
			vars = object.Data
		case "DaemonSet":
			command = object.Spec.Template.Spec.Containers[0].Command
		}
	}
	if command == nil {
		t.Fatalf("no daemon set:\n%s", text)
	}
	for i := range command {
		for k, v := range vars {
			command[i] = strings.ReplaceAll(command[i], "$("+k+")", v)
		}
	}
	return command
}

// backsUp starts a command line of contrib and waits for its first backup.
func (n *node) backsUp(t *testing.T, command []string) {
	t.Helper()
	if filepath.Base(command[0]) != "etcd-backup" {
		t.Fatalf("it starts %s", command[0])
	}
	store, port := t.TempDir(), testutil.FreePort(t)
	env := filepath.Join(t.TempDir(), "env")
	testutil.Must(t, os.WriteFile(env, []byte("AWS_REGION=eu-west-1\n"), 0o600))
	here := map[string]string{"--client-url": n.url, "--backup-store": store, "--data-dir": t.TempDir(), "--env-file": env,
		"--client-ca-file": n.root + pki + "etcd/ca.crt", "--client-cert-file": n.root + pki + "etcd/healthcheck-client.crt",
		"--client-key-file": n.root + pki + "etcd/healthcheck-client.key"}
	args := []string{program(t, "etcd-backup")}
	for _, a := range command[1:] {
		name, value, ok := strings.Cut(a, "=")
		if !ok || value == "" || strings.Contains(value, "$(") {
			t.Errorf("%s is no flag with a value", a)
		}
		if name == "--backup-store" && !strings.HasPrefix(value, "s3://") {
			t.Errorf("the store is %s", value)
		}
		if v := here[name]; v != "" {
			a = name + "=" + v
		}
		args = append(args, a)
	}
	if !strings.Contains(strings.Join(args, " "), "--data-dir=") {
		args = append(args, "--data-dir="+t.TempDir())
	}
	cmd := n.background(append(args, fmt.Sprintf("--metrics-port=%d", port)))
	defer func() { _ = cmd.Process.Kill() }() // it isn't needed until the end of all
	waitFor(t, "the first backup", port, func(s sidecarStatus) bool { return s.Backups == 1 && s.BackupError == "" })
}
