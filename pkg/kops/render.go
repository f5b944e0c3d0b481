package kops

import (
	"fmt"
	"slices"
	"strings"
)

// Rendered is one file for the masters of an instance group.
type Rendered struct {
	// Path is relative: the instance group, then pods or systemd.
	Path string
	Data []byte
}

// Render makes the static pods and the systemd units of each instance group. The pods go where the
// kubelet looks for them; the units are for masters on which etcd runs beside Kubernetes, or
// without.
func Render(f *File, opts Options) ([]Rendered, error) {
	var out []Rendered
	for i := range f.Clusters {
		c := &f.Clusters[i]
		if opts.image(c) == "" {
			return nil, fmt.Errorf("%w: spec.etcdClusters[%s].manager.image is not set, so the static pod can't be created: name an image there or with --image", ErrInvalid, c.Name)
		}
		manifest, err := f.pod(c, opts).encode()
		if err != nil {
			return nil, fmt.Errorf("encode static pod of %s: %w", c.Name, err)
		}
		for _, group := range c.groups() {
			out = append(out,
				Rendered{fmt.Sprintf("%s/pods/etcd-manager-%s.yaml", group, c.Name), manifest},
				Rendered{fmt.Sprintf("%s/systemd/etcd-manager-%s.service", group, c.Name), []byte(f.unit(c))})
		}
	}
	slices.SortFunc(out, func(a, b Rendered) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// unit is the systemd unit that runs the manager of an etcd cluster. contrib/systemd says why it is as it is.
func (f *File) unit(c *EtcdCluster) string {
	var b strings.Builder
	fmt.Fprintf(&b, `# The manager of the etcd cluster %s of %s. The CAs are expected in %s.
[Unit]
Description=etcd-manager (%s)
Documentation=https://github.com/etcd-manager/etcd-manager
Wants=network-online.target
After=network-online.target
StartLimitIntervalSec=0

[Service]
Type=simple
`, c.Name, f.Name, pkiDir(c.Name), c.Name)
	for _, e := range c.environment() {
		fmt.Fprintf(&b, "Environment=%s\n", unitQuote(e.Name+"="+e.Value))
	}
	fmt.Fprintf(&b, "ExecStart=/usr/local/bin/etcd-manager")
	for _, flag := range f.flags(c, false) {
		fmt.Fprintf(&b, " \\\n  %s", unitQuote(strings.ReplaceAll(flag, "$", "$$")))
	}
	b.WriteString(`
Restart=always
RestartSec=2s
# Only the manager gets SIGTERM, and it stops its etcd gracefully.
# If a manager dies, its etcd keeps running, and the next manager reattaches to it.
KillMode=process
TimeoutStopSec=90s
OOMScoreAdjust=-900
OOMPolicy=continue
LimitNOFILE=65536

[Install]
WantedBy=multi-user.target
`)
	return b.String()
}

// unitQuote writes one word so that systemd takes nothing in it for anything else.
func unitQuote(s string) string {
	s = strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "%", "%%")
	if strings.ContainsAny(s, " \t\"'\\;#") {
		return `"` + strings.ReplaceAll(s, `"`, `\"`) + `"`
	}
	return s
}
