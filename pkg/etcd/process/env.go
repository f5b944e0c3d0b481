package process

import (
	"crypto/tls"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/tlsutil"
	"go.etcd.io/etcd/server/v3/embed"
)

// CheckEnv says which ETCD_ variables etcd would refuse to start with, each by its name. What only other versions of etcd
// know is left alone, and so is what the manager doesn't hand on.
func CheckEnv(env map[string]string) error {
	var errs []error
	flags := flag.NewFlagSet("etcd", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	embed.NewConfig().AddFlags(flags)
	known := map[string]*flag.Flag{}
	flags.VisitAll(func(f *flag.Flag) { known[envName(f.Name)] = f })
	for _, name := range slices.Sorted(maps.Keys(env)) {
		if f := known[name]; f != nil && env[name] != "" {
			if err := f.Value.Set(env[name]); err != nil {
				errs = append(errs, fmt.Errorf("%s=%s: etcd would refuse to start: %w", name, env[name], err))
			}
		}
	}
	return errors.Join(append(errs, checkTLSEnv(env), checkTimesEnv(env), checkCompactionEnv(env))...)
}

// TLSMinVersion is the least version of TLS that etcd is to take by its variables; 0 if they don't say.
func TLSMinVersion(env map[string]string) uint16 {
	v, err := tlsutil.GetTLSVersion(env["ETCD_TLS_MIN_VERSION"])
	if err != nil {
		return 0
	}
	return v
}

func checkTLSEnv(env map[string]string) error {
	const least, most, suites = "ETCD_TLS_MIN_VERSION", "ETCD_TLS_MAX_VERSION", "ETCD_CIPHER_SUITES"
	var errs []error
	versions := map[string]uint16{}
	for _, name := range []string{least, most} {
		v, err := tlsutil.GetTLSVersion(env[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("%s=%s: etcd would refuse to start: it has to be TLS1.2 or TLS1.3", name, env[name]))
		}
		versions[name] = v
	}
	if versions[most] != 0 && versions[least] > versions[most] {
		errs = append(errs, fmt.Errorf("%s=%s is above %s=%s: etcd would refuse to start", least, env[least], most, env[most]))
	}
	if env[suites] == "" {
		return errors.Join(errs...)
	}
	if versions[least] == tls.VersionTLS13 {
		errs = append(errs, fmt.Errorf("%s can't be chosen with %s=%s: etcd would refuse to start; leave one of them out", suites, least, env[least]))
	}
	for s := range strings.SplitSeq(env[suites], ",") {
		if _, ok := tlsutil.GetCipherSuite(strings.TrimSpace(s)); !ok {
			errs = append(errs, fmt.Errorf("%s: there is no cipher suite %q, so etcd would refuse to start", suites, s))
		}
	}
	return errors.Join(errs...)
}

// checkTimesEnv compares raft's times where both are numbers.
func checkTimesEnv(env map[string]string) error {
	const beatName, electionName = "ETCD_HEARTBEAT_INTERVAL", "ETCD_ELECTION_TIMEOUT"
	number := func(name string, usual uint64) uint64 {
		if n, err := strconv.ParseUint(env[name], 10, 32); err == nil {
			return n
		}
		return usual
	}
	if env[beatName] == "" && env[electionName] == "" {
		return nil
	}
	const usualBeat, usualElection, maxElection = 100, 1000, 50_000 // etcd's own, in milliseconds
	beat, election := number(beatName, usualBeat), number(electionName, usualElection)
	switch {
	case beat == 0 || election == 0:
		return fmt.Errorf("%s and %s must be positive, or etcd refuses to start", beatName, electionName)
	case election < 5*beat:
		return fmt.Errorf("%s (%d ms) must be at least five times %s (%d ms), or etcd refuses to start", electionName, election, beatName, beat)
	case election > maxElection:
		return fmt.Errorf("%s (%d ms) must not be above %d ms, or etcd refuses to start", electionName, election, maxElection)
	}
	return nil
}

func checkCompactionEnv(env map[string]string) error {
	const modeName, keepName = "ETCD_AUTO_COMPACTION_MODE", "ETCD_AUTO_COMPACTION_RETENTION"
	mode, keep := env[modeName], env[keepName]
	if mode != "" && mode != embed.CompactorModePeriodic && mode != embed.CompactorModeRevision {
		return fmt.Errorf("%s=%s: etcd would refuse to start: it has to be periodic or revision", modeName, mode)
	}
	if keep == "" {
		return nil
	}
	n, err := strconv.Atoi(keep)
	if err == nil && n >= 0 {
		return nil
	}
	if _, err := time.ParseDuration(keep); err != nil {
		return fmt.Errorf("%s=%s: etcd would refuse to start: it has to be a number or a time such as 30m", keepName, keep)
	}
	return nil
}
