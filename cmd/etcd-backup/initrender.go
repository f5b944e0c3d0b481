package main

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/detect"
)

// dataDir is where a sidecar keeps what waits for the store, on the machine and in a pod.
const dataDir = "/var/lib/etcd-backup"

// render is what starts the sidecar, in a form.
func (o *initOptions) render(e detect.Etcd, form string, sidecar []string, places []place) string {
	switch form {
	case formUnit:
		return o.unit(e, sidecar)
	case formTalos:
		pod := strings.TrimSuffix(o.pod(e, sidecar, places), "\n")
		return "# A patch of the machine configuration of control plane nodes. Settings of the store, such as AWS_ACCESS_KEY_ID, belong into env.\n" +
			"machine:\n  pods:\n  - " + strings.ReplaceAll(pod, "\n", "\n    ") + "\n"
	}
	return o.pod(e, sidecar, places)
}

// mount is a path of the machine in the pod.
type mount struct {
	name, path, kind string
	readOnly         bool
}

// mounts are what the sidecar reads and writes, each path once and as on the machine. Certificates come with their directories, because a
// renewal may replace the files.
func (o *initOptions) mounts(places []place) []mount {
	list := []mount{{"data", dataDir, "DirectoryOrCreate", false}}
	var dirs []string
	store := strings.TrimRight(storeDir(o.store), "/")
	for _, p := range places {
		if dir := filepath.Dir(p.path); p.file && p.what != envFilePlace && dir != store && dir != dataDir {
			dirs = append(dirs, dir)
		}
	}
	slices.Sort(dirs)
	for i, dir := range slices.Compact(dirs) {
		list = append(list, mount{fmt.Sprintf("etcd-%d", i), dir, "Directory", true})
	}
	if store != "" {
		list = append(list, mount{"store", store, "Directory", false})
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
func (o *initOptions) pod(e detect.Etcd, sidecar []string, places []place) string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("apiVersion: v1\nkind: Pod\nmetadata:\n  name: etcd-backup\n  namespace: kube-system\n  labels:\n    app.kubernetes.io/name: etcd-backup")
	p("spec:\n  hostNetwork: true\n  priorityClassName: system-node-critical\n  securityContext:\n    seccompProfile:\n      type: RuntimeDefault")
	p("  containers:\n  - name: etcd-backup\n    image: %s\n    command:\n    - /etcd-backup", yamlString(o.image))
	for _, a := range sidecar {
		p("    - %s", podWord(a))
	}
	if e.Kind == detect.Talos {
		p("    env: []")
	}
	p("    resources:\n      requests:\n        cpu: 50m\n        memory: 64Mi")
	p("    securityContext:\n      runAsUser: 0\n      readOnlyRootFilesystem: true\n      allowPrivilegeEscalation: false\n      capabilities:\n" +
		"        drop: [ALL]\n        add: [DAC_READ_SEARCH]")
	p("    volumeMounts:")
	mounts := o.mounts(places)
	for _, m := range mounts {
		p("    - name: %s\n      mountPath: %s", m.name, yamlString(m.path))
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
		after += " " + unitPath(e.Unit+".service")
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
# It is ready when it has read its flags and asked the store once. etcd may come later.
Type=notify
NotifyAccess=main
TimeoutStartSec=10min
# It gives a sign of life while its loop makes progress.
WatchdogSec=5min
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
