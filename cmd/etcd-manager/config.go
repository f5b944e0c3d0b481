package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/settings"
)

const configHelp = `etcd-manager config show prints what is in force with these flags and the file of --config, and where each value comes from. What
may be a secret isn't printed. etcd-manager config schema prints a JSON schema of that file.

usage: etcd-manager config show [flags of etcd-manager]
       etcd-manager config schema

example: etcd-manager config show --config=/etc/etcd-manager/config.yaml

The exit code is 0, or 2 if something is wrong, which is said behind the values.
`

// configMain is "config".
func configMain(args, environ []string, out, errOut io.Writer) int {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard) // a warning would stand in the middle of the result
	return configRun(args, environ, out, errOut)
}

func configRun(args, environ []string, out, errOut io.Writer) int {
	switch {
	case len(args) == 1 && args[0] == "schema":
		data, err := settings.Schema(newFlags(&options{}))
		if err != nil {
			fmt.Fprintf(errOut, "etcd-manager config: %v\n", err)
			return exitError
		}
		fmt.Fprintf(out, "%s", data)
		return exitOK
	case len(args) > 0 && args[0] == "show":
		return configShow(args[1:], environ, out, errOut)
	case len(args) == 1 && slices.Contains([]string{"help", "--help", "-h"}, args[0]):
		fmt.Fprint(out, configHelp)
		return exitOK
	}
	fmt.Fprint(errOut, configHelp)
	return exitUsage
}

func configShow(args, environ []string, out, errOut io.Writer) int {
	o := &options{env: map[string]string{}}
	_, errs := o.parseAll(args, environ)
	if len(errs) > 0 && errors.Is(errs[0], flag.ErrHelp) {
		fmt.Fprint(out, configHelp)
		return exitOK
	}
	if err := settings.Show(out, o.inForce, variables(o)); err != nil {
		fmt.Fprintf(errOut, "etcd-manager config: print: %v\n", err)
		return exitError
	}
	for _, err := range errs {
		fmt.Fprintf(errOut, "etcd-manager: %v\n", err)
	}
	if len(errs) > 0 {
		return exitUsage
	}
	return exitOK
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
