package settings

import (
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/klog/v2"
)

// LogFlags declares klog's flags. first is nil for those of the process; else it has those, and these are only read: what klog's own set is
// in force at once, and a file with a mistake must change nothing.
func LogFlags(f, first *flag.FlagSet) {
	if first == nil {
		klog.InitFlags(f)
		return
	}
	all := flag.NewFlagSet("", flag.ContinueOnError)
	klog.InitFlags(all)
	all.VisitAll(func(x *flag.Flag) {
		b, ok := x.Value.(interface{ IsBoolFlag() bool })
		f.Var(&onlyRead{name: x.Name, text: first.Lookup(x.Name).DefValue, isBool: ok && b.IsBoolFlag()}, x.Name, x.Usage)
	})
}

// onlyRead is a flag that changes nothing.
type onlyRead struct {
	name, text string
	isBool     bool
}

func (r *onlyRead) String() string   { return r.text }
func (r *onlyRead) IsBoolFlag() bool { return r.isBool }

// Set checks what TakeLogFlags must be able to set later.
func (r *onlyRead) Set(text string) error {
	if r.isBool {
		if _, err := strconv.ParseBool(text); err != nil {
			return fmt.Errorf("%.40q is not true or false", text)
		}
	}
	if r.name == "v" {
		if _, err := strconv.ParseInt(text, 10, 32); err != nil {
			return fmt.Errorf("%.40q is not a number", text)
		}
	}
	if r.name == "vmodule" {
		for part := range strings.SplitSeq(text, ",") {
			_, level, ok := strings.Cut(part, "=")
			if _, err := strconv.ParseInt(level, 10, 32); part != "" && (!ok || err != nil) {
				return fmt.Errorf("%.40q is not like pattern=N", part)
			}
		}
	}
	r.text = text
	return nil
}

// LiveLogFlags are klog's flags that may change while a program runs.
func LiveLogFlags() []string { return []string{"v", "vmodule"} }

// TakeLogFlags puts those of LiveLogFlags in force that were only read.
func TakeLogFlags(process, read *flag.FlagSet) error {
	for _, name := range LiveLogFlags() {
		if err := process.Lookup(name).Value.Set(read.Lookup(name).Value.String()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// Changed names the settings that differ: those that may change while the program runs, and those for which it must be started again.
func Changed(was, is []Setting, live func(name string) bool) (now, restart []string) {
	for i, s := range is {
		switch {
		case slices.Equal(s.Values, was[i].Values):
		case live(s.Name):
			now = append(now, s.Name)
		default:
			restart = append(restart, s.Name)
		}
	}
	return now, restart
}

// Take notes that what may change has changed.
func Take(was, is []Setting, live func(name string) bool) {
	for i, s := range is {
		if live(s.Name) {
			was[i] = s
		}
	}
}

// Report logs what became of a file that was read again.
func Report(path string, now, restart []string) {
	if len(now) > 0 {
		klog.Infof("SIGHUP: %s was read again; changed: %s", path, strings.Join(now, ", "))
	}
	if len(restart) > 0 {
		klog.Warningf("SIGHUP: %s was read again; these changes are only in force after a restart: %s", path, strings.Join(restart, ", "))
	}
	if len(now)+len(restart) == 0 {
		klog.Infof("SIGHUP: %s was read again; it changes nothing", path)
	}
}

// ReportNone logs why a file could not be read again.
func ReportNone(path string, err error) {
	if path == "" {
		klog.Warningf("SIGHUP: there is no --config, so nothing is read again")
		return
	}
	klog.Errorf("SIGHUP: %s could not be read again, so everything stays as it is; repair it and send SIGHUP again: %v", path, err)
}
