package process

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// CommandLine is everything that starts one etcd process.
type CommandLine struct {
	// Argv begins with the executable's path.
	Argv []string
	// Env is the whole environment, sorted; nothing is inherited.
	Env []string
	// DataDir and Version are those of the Config and the Binary.
	DataDir string
	Version string
	// Fingerprint stands for all that has an effect on a member that has been started before: version, flags and
	// environment, without the flags that matter only while etcd starts and without the executable's place. A running
	// process with another fingerprint needs a restart.
	Fingerprint string

	compiled bool
	id       exeID
}

// CommandLine runs this etcd with flags that aren't made of a Config. It has no environment, data dir or fingerprint.
func (b Binary) CommandLine(flags ...string) CommandLine {
	argv := append(append([]string{b.Path}, b.Args...), flags...)
	return CommandLine{Argv: argv, Version: b.Version, compiled: b.Compiled, id: b.id}
}

// Executable opens what is to run: the file that was asked for its version, or the manager's own. The caller closes what was opened.
func (c CommandLine) Executable(more ...*os.File) (*exec.Cmd, io.Closer, error) {
	if c.compiled {
		cmd := exec.Command(c.Argv[0], c.Argv[1:]...)
		cmd.ExtraFiles = more
		return cmd, io.NopCloser(nil), nil
	}
	f, id, err := openTrusted(c.Argv[0])
	if err != nil {
		return nil, nil, fmt.Errorf("run %s: %w", c.Argv[0], err)
	}
	if c.id != (exeID{}) && c.id != id {
		return nil, nil, errors.Join(fmt.Errorf("%w: %s was replaced a moment ago; it is asked for its version first", ErrNoBinary, c.Argv[0]), f.Close())
	}
	return runFile(c.Argv, f, more...), f, nil
}

// setting is one flag.
type setting struct {
	name, value string
	// aliases are further names under which the operator's environment may name the same setting.
	aliases []string
	// bootstrap is true for what etcd reads only when it has no data yet.
	bootstrap bool
}

// envName is how etcd derives an environment variable from a flag.
func envName(flagName string) string {
	return "ETCD_" + strings.ToUpper(strings.ReplaceAll(flagName, "-", "_"))
}

// Command turns a configuration into a command line for that binary's version. It is pure. The error
// wraps ErrConfig or ErrVersion.
func Command(cfg etcd.Config, bin Binary) (CommandLine, error) {
	if err := etcd.ValidateVersion(bin.Version); err != nil {
		return CommandLine{}, err
	}
	if bin.Path == "" {
		return CommandLine{}, fmt.Errorf("%w: no executable for etcd %s", etcd.ErrConfig, bin.Version)
	}
	if err := cfg.Validate(); err != nil {
		return CommandLine{}, err
	}
	argv := append([]string{bin.Path}, bin.Args...)
	for _, f := range effective(cfg, bin) {
		argv = append(argv, "--"+f.name+"="+f.value)
	}
	lasting := []string{bin.Version}
	cfg.InitialCorruptCheck = false // it matters only while etcd starts
	for _, f := range effective(cfg, bin) {
		if !f.bootstrap {
			lasting = append(lasting, f.name+"="+f.value)
		}
	}
	for _, t := range []*etcd.TLSFiles{cfg.PeerTLS, cfg.ClientTLS} {
		if t != nil && t.CADigest != "" {
			lasting = append(lasting, "ca="+t.CADigest)
		}
	}
	cmd := CommandLine{Argv: argv, Env: environment(cfg.ExtraEnv), DataDir: cfg.DataDir, Version: bin.Version, compiled: bin.Compiled, id: bin.id}
	cmd.Fingerprint = fingerprint(lasting, cmd.Env)
	return cmd, nil
}

// effective lists the flags that the operator's environment doesn't name.
func effective(cfg etcd.Config, bin Binary) []setting {
	return slices.DeleteFunc(settings(cfg, etcd.MinorNumber(bin.Version)), func(f setting) bool {
		// The data dir is never the operator's to move: it is how a process is recognized.
		return f.name != "data-dir" && overridden(cfg.ExtraEnv, f)
	})
}

func overridden(env map[string]string, f setting) bool {
	for _, n := range append([]string{f.name}, f.aliases...) {
		if _, ok := env[envName(n)]; ok {
			return true
		}
	}
	return false
}

func environment(extra map[string]string) []string {
	env := []string{}
	for k, v := range extra {
		if strings.HasPrefix(k, "ETCD_MANAGER_") || k == "ETCD_DATA_DIR" {
			continue
		}
		env = append(env, k+"="+v)
	}
	slices.Sort(env)
	return env
}

// settings lists the flags for a minor version of etcd 3.
func settings(cfg etcd.Config, minor int) []setting {
	var fs []setting
	add := func(name, value string, aliases ...string) {
		if value != "" {
			fs = append(fs, setting{name: name, value: value, aliases: aliases})
		}
	}
	state := "existing"
	if cfg.NewCluster {
		state = "new"
	}
	add("name", cfg.Name)
	add("data-dir", cfg.DataDir)
	fs = append(fs,
		setting{name: "initial-cluster", value: etcd.InitialClusterFlag(cfg.InitialCluster), bootstrap: true},
		setting{name: "initial-cluster-state", value: state, bootstrap: true})
	add("initial-cluster-token", string(cfg.Token))
	add("initial-advertise-peer-urls", strings.Join(cfg.PeerURLs, ","))
	add("listen-peer-urls", strings.Join(cfg.ListenPeerURLs, ","))
	add("advertise-client-urls", strings.Join(cfg.ClientURLs, ","))
	add("listen-client-urls", strings.Join(cfg.ListenClientURLs, ","))
	add("listen-metrics-urls", strings.Join(cfg.ListenMetricsURLs, ","))
	if t := cfg.PeerTLS; t != nil {
		add("peer-client-cert-auth", "true")
		add("peer-trusted-ca-file", t.CAFile)
		add("peer-cert-file", t.CertFile)
		add("peer-key-file", t.KeyFile)
	}
	if t := cfg.ClientTLS; t != nil {
		add("client-cert-auth", "true")
		add("trusted-ca-file", t.CAFile)
		add("cert-file", t.CertFile)
		add("key-file", t.KeyFile)
	}
	add("quota-backend-bytes", positive(cfg.QuotaBytes))
	add("auto-compaction-mode", cfg.AutoCompactionMode)
	add("auto-compaction-retention", cfg.AutoCompactionRetention)
	add("snapshot-count", positive(int64(cfg.SnapshotCount)))
	add("heartbeat-interval", positive(cfg.Heartbeat.Milliseconds()))
	add("election-timeout", positive(cfg.ElectionTimeout.Milliseconds()))
	if minor == 4 {
		add("logger", "zap") // the default since 3.5
	}
	add("log-level", cfg.LogLevel)
	// Said explicitly, because below systemd the default would be the journal.
	add("log-outputs", "stderr", "log-output")
	return append(fs, corruptionSettings(cfg, minor)...)
}

// corruptionSettings: experimental flags up to 3.5, feature gates and plain flags from 3.6 on, where
// etcd refuses to start if a setting is given under both names.
func corruptionSettings(cfg etcd.Config, minor int) []setting {
	var fs []setting
	if minor >= 6 {
		var gates []string
		gate := func(on bool, name, old string) {
			// 3.6 still knows the old names; 3.7 ignores them.
			if on && !(minor == 6 && overridden(cfg.ExtraEnv, setting{name: old})) {
				gates = append(gates, name+"=true")
			}
		}
		gate(cfg.CompactHashCheck, "CompactHashCheck", "experimental-compact-hash-check-enabled")
		gate(cfg.InitialCorruptCheck, "InitialCorruptCheck", "experimental-initial-corrupt-check")
		if len(gates) > 0 {
			fs = append(fs, setting{name: "feature-gates", value: strings.Join(gates, ",")})
		}
		if cfg.CorruptCheckInterval > 0 {
			f := setting{name: "corrupt-check-time", value: cfg.CorruptCheckInterval.String()}
			if minor == 6 {
				f.aliases = []string{"experimental-corrupt-check-time"}
			}
			fs = append(fs, f)
		}
		return fs
	}
	if cfg.InitialCorruptCheck {
		fs = append(fs, setting{name: "experimental-initial-corrupt-check", value: "true"})
	}
	if cfg.CorruptCheckInterval > 0 {
		fs = append(fs, setting{name: "experimental-corrupt-check-time", value: cfg.CorruptCheckInterval.String()})
	}
	if cfg.CompactHashCheck && minor >= 5 {
		fs = append(fs, setting{name: "experimental-compact-hash-check-enabled", value: "true"})
	}
	return fs
}

func positive(n int64) string {
	if n <= 0 {
		return ""
	}
	return strconv.FormatInt(n, 10)
}

func fingerprint(lasting, env []string) string {
	h := sha256.New()
	for _, s := range lasting {
		fmt.Fprintf(h, "%d:%s,", len(s), s)
	}
	fmt.Fprint(h, "|")
	for _, s := range env {
		fmt.Fprintf(h, "%d:%s,", len(s), s)
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// DefaultStopGrace is how long etcd gets between SIGTERM and SIGKILL if nothing else is said.
const DefaultStopGrace = 15 * time.Second
