package main

import (
	"bufio"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
)

// useEnvFile reads --env-file into the environment.
func (o *options) useEnvFile() error {
	vars, err := readEnvFile(o.envFile)
	if err != nil {
		return err
	}
	maps.Copy(o.env, vars)
	for k, v := range vars {
		if err := os.Setenv(k, v); err != nil { // libraries read the process's own environment
			return fmt.Errorf("--env-file %s: %s: %w", o.envFile, k, err)
		}
	}
	return nil
}

// readEnvFile reads KEY=VALUE lines; blank lines and comments are passed over.
func readEnvFile(path string) (map[string]string, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("--env-file: %w", err)
	}
	defer file.Close()
	vars := map[string]string{}
	s := bufio.NewScanner(file)
	for n := 1; s.Scan(); n++ {
		line := strings.TrimSpace(s.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		k, v, ok := strings.Cut(line, "=")
		if !ok || k == "" {
			// What stands there may be a secret.
			return nil, fmt.Errorf("--env-file %s: line %d is not KEY=VALUE", path, n)
		}
		vars[k] = v
	}
	if err := s.Err(); err != nil {
		return nil, fmt.Errorf("--env-file %s: %w", path, err)
	}
	return vars, nil
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
