package main

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/settings"
)

// useEnvFile reads --env-file into the environment.
func (o *options) useEnvFile() error {
	vars, err := settings.ReadEnv(o.envFile)
	if err != nil {
		return err
	}
	maps.Copy(o.env, vars)
	o.envFrom = map[string]string{}
	for k, v := range vars {
		o.envFrom[k] = o.envFile
		if err := os.Setenv(k, v); err != nil { // libraries read the process's own environment
			return fmt.Errorf("--env-file %s: %s: %w", o.envFile, k, err)
		}
	}
	return nil
}

// etcdEnv are the variables that etcd gets.
func (o *options) etcdEnv() map[string]string {
	env := map[string]string{}
	for k, v := range o.env {
		if strings.HasPrefix(k, "ETCD_") && !strings.HasPrefix(k, "ETCD_MANAGER_") {
			env[k] = v
		}
	}
	return env
}

func (o *options) etcdMetricsURLs() []string {
	if o.metricsURLs == "" {
		return nil
	}
	return slices.DeleteFunc(strings.Split(o.metricsURLs, ","), func(s string) bool { return s == "" })
}
