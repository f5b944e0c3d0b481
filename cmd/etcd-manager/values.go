package main

import "github.com/etcd-manager/etcd-manager/pkg/volume"

// list is a flag that may be repeated.
type list struct{ values *[]string }

func (l list) String() string { return "" }

// Values are what was given, for settings.List.
func (l list) Values() []string { return *l.values }

func (l list) Set(s string) error {
	*l.values = append(*l.values, s)
	return nil
}

// encryption is --require-encrypted-volume: it may stand alone, or have the ARN of a key.
type encryption struct{ value *volume.Encryption }

func (e encryption) String() string {
	switch {
	case e.value == nil || !e.value.Required:
		return ""
	case e.value.Key != "":
		return e.value.Key
	}
	return "true"
}

func (e encryption) IsBoolFlag() bool { return true }
func (e encryption) Set(s string) (err error) {
	*e.value, err = volume.ParseEncryption(s)
	return err
}
