package main

import (
	"flag"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/settings"
)

// configMain is "config".
func configMain(args, environ []string, out, errOut io.Writer) int {
	klog.SetLogger(logr.Discard()) // a warning would stand in the middle of the result; klog's own flags stay as they are
	return configRun(args, environ, out, errOut)
}

func configRun(args, environ []string, out, errOut io.Writer) int {
	c := settings.Command{Program: "etcd-manager", Example: "/etc/etcd-manager/config.yaml",
		Flags: func() *flag.FlagSet { return newFlags(&options{}) }}
	c.Read = func(args []string) ([]settings.Setting, []settings.Variable, []error) {
		o := &options{env: map[string]string{}}
		_, errs := o.parseAll(args, environ)
		return o.inForce, variables(o), errs
	}
	return c.Run(args, out, errOut)
}

// variables are those of the environment that decide something, as far as they are the manager's or etcd's.
func variables(o *options) []settings.Variable {
	var list []settings.Variable
	for _, name := range slices.Sorted(maps.Keys(o.env)) {
		if !strings.HasPrefix(name, "ETCD_") {
			continue
		}
		v := settings.Variable{Name: name, Value: settings.HideVariable(name, o.env[name]), Source: "environment"}
		if file := o.envFrom[name]; file != "" {
			v.Source = file
		}
		list = append(list, v)
	}
	return list
}
