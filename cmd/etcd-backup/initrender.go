package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/detect"
)

// dataDir is where a sidecar keeps what waits for the store, on the machine.
const dataDir = "/var/lib/etcd-backup"

// render is what starts the sidecar, in a form.
func (o *initOptions) render(e detect.Etcd, form string, sidecar []string) string {
	switch form {
	case formUnit:
		return o.unit(e, sidecar)
	case formTalos:
		pod := strings.TrimSuffix(o.pod(e, sidecar), "\n")
		return "# A patch of the machine configuration of control plane nodes. Settings of the store, such as AWS_ACCESS_KEY_ID, belong into env.\n" +
			"machine:\n  pods:\n  - " + strings.ReplaceAll(pod, "\n", "\n    ") + "\n"
	}
	return o.pod(e, sidecar)
}

// mount is a path of the machine in the pod.
type mount struct {
	name, path, kind string
	readOnly         bool
}

// mounts are what the sidecar reads and writes. Certificates come with their directories, because a renewal may replace the files.
func (o *initOptions) mounts(e detect.Etcd) []mount {
	list := []mount{{"data", dataDir, "DirectoryOrCreate", false}}
	var dirs []string
	for _, f := range []string{e.CA, e.Cert, e.Key, o.password} {
		if f != "" {
			dirs = append(dirs, filepath.Dir(f))
		}
	}
	for _, s := range strings.Split(e.URL, ",") {
		if path, ok := strings.CutPrefix(strings.TrimPrefix(s, "unixs://"), "unix://"); ok || strings.HasPrefix(s, "unixs://") {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	slices.Sort(dirs)
	for i, dir := range slices.Compact(dirs) {
		list = append(list, mount{fmt.Sprintf("etcd-%d", i), dir, "Directory", true})
	}
	if dir := storeDir(o.store); dir != "" {
		list = append(list, mount{"store", dir, "Directory", false})
	}
	if o.envFile != "" {
		list = append(list, mount{"env", o.envFile, "File", true})
	}
	return list
}

// storeDir is the directory of a store that is one.
func storeDir(store string) string {
	if path, ok := strings.CutPrefix(store, "file://"); ok {
		store = path
	}
	if strings.HasPrefix(store, "/") {
		return store
	}
	return ""
}

// pod is a static pod. It runs as root, because keys belong to root, without any of root's other rights.
func (o *initOptions) pod(e detect.Etcd, sidecar []string) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("apiVersion: v1\nkind: Pod\nmetadata:\n  name: etcd-backup\n  namespace: kube-system\n  labels:\n    app.kubernetes.io/name: etcd-backup")
	p("spec:\n  hostNetwork: true\n  priorityClassName: system-node-critical\n  securityContext:\n    seccompProfile:\n      type: RuntimeDefault")
	p("  containers:\n  - name: etcd-backup\n    image: %s\n    command:\n    - /etcd-backup", yamlString(o.image))
	for _, a := range sidecar {
		p("    - %s", yamlString(a))
	}
	if e.Kind == detect.Talos {
		p("    env: []")
	}
	p("    resources:\n      requests:\n        cpu: 50m\n        memory: 64Mi")
	p("    securityContext:\n      runAsUser: 0\n      readOnlyRootFilesystem: true\n      allowPrivilegeEscalation: false\n      capabilities:\n" +
		"        drop: [ALL]\n        add: [DAC_READ_SEARCH]")
	p("    volumeMounts:")
	mounts := o.mounts(e)
	for _, m := range mounts {
		path := m.path
		if m.name == "data" {
			path = "/data"
		}
		p("    - name: %s\n      mountPath: %s", m.name, yamlString(path))
		if m.readOnly {
			p("      readOnly: true")
		}
	}
	p("    - name: tmp\n      mountPath: /tmp\n  volumes:")
	for _, m := range mounts {
		p("  - name: %s\n    hostPath:\n      path: %s\n      type: %s", m.name, yamlString(m.path), m.kind)
	}
	p("  - name: tmp\n    emptyDir: {}")
	return b.String()
}

// unit is a unit of systemd, with the limits of contrib/systemd/etcd-backup.service.
func (o *initOptions) unit(e detect.Etcd, sidecar []string) string {
	after := "network-online.target"
	if e.Kind != detect.Talos && e.Kind != detect.Kubeadm && e.Unit != "" {
		after += " " + e.Unit + ".service"
	}
	var words []string
	for _, a := range append([]string{o.program}, sidecar...) {
		words = append(words, unitWord(a))
	}
	write := "# The store is a directory.\nReadWritePaths=" + unitPath(storeDir(o.store)) + "\n"
	if storeDir(o.store) == "" {
		write = ""
	}
	return `# Backs up the etcd of ` + string(e.Kind) + ` on this machine; of several instances one acts. Made by etcd-backup init.
[Unit]
Description=Backups of etcd
Documentation=https://github.com/etcd-manager/etcd-manager
Wants=network-online.target
After=` + after + `
StartLimitIntervalSec=0

[Service]
Type=simple
ExecStart=` + strings.Join(words, " \\\n  ") + `
Restart=always
RestartSec=10s
TimeoutStopSec=30s

StateDirectory=etcd-backup
StateDirectoryMode=0700
ProtectSystem=strict
` + write + `ProtectHome=true
PrivateDevices=true
PrivateTmp=true

# It runs as root only to read the client's key, whoever owns it. It has none of root's other rights.
NoNewPrivileges=true
CapabilityBoundingSet=CAP_DAC_READ_SEARCH
LockPersonality=true
MemoryDenyWriteExecute=true
ProtectClock=true
ProtectControlGroups=true
ProtectHostname=true
ProtectKernelLogs=true
ProtectKernelModules=true
ProtectKernelTunables=true
ProtectProc=invisible
# AF_NETLINK tells the machine's addresses, AF_UNIX reaches the name service.
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=true
RestrictRealtime=true
RestrictSUIDSGID=true
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@keyring
UMask=0077

[Install]
WantedBy=multi-user.target
`
}

// yamlString is a string in YAML, plain where that is safe.
func yamlString(s string) string {
	plain := s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/.-_=:@,+", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	})
	if plain && !strings.HasSuffix(s, ":") && (s[0] == '/' || strings.HasPrefix(s, "--") || s[0] >= 'a' && s[0] <= 'z') {
		return s
	}
	return fmt.Sprintf("%q", s)
}

// unitWord is an argument on a unit's command line, where % and $ mean something.
func unitWord(s string) string {
	s = strings.NewReplacer("%", "%%", "$", "$$").Replace(s)
	if s == "" || strings.ContainsAny(s, " \t\"'\\;") {
		return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
	}
	return s
}

// unitPath is a path in a list of paths.
func unitPath(s string) string {
	s = strings.ReplaceAll(s, "%", "%%")
	if strings.ContainsAny(s, " \t") {
		return `"` + s + `"`
	}
	return s
}

// shellWord is a word for a shell.
func shellWord(s string) string {
	if s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !strings.ContainsRune("/.-_=:@,+%", r) && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
	}) {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func shellWords(list []string) string {
	var words []string
	for _, s := range list {
		words = append(words, shellWord(s))
	}
	return strings.Join(words, " ")
}
