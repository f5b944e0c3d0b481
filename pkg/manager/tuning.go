package manager

import (
	"fmt"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
)

// Tuning is what may be changed while a Manager runs. The rest of its configuration holds until the end of the process.
type Tuning struct {
	BackupInterval time.Duration
	// DefragThreshold, DefragFrom and DefragUntil are as in model.Policy.
	DefragThreshold         float64
	DefragFrom, DefragUntil time.Duration
	Retention               prune.Policy
}

// Tuner changes what may be changed of the Manager whose Config has it. Its methods may be called concurrently.
type Tuner struct {
	mu  sync.Mutex
	now Tuning
	// changed has the leadership of the moment look again; nil before New.
	changed func()
}

// Set changes it. The next decision, and the next run of retention, go by it.
func (t *Tuner) Set(now Tuning) error {
	if now.BackupInterval <= 0 {
		return fmt.Errorf("manager: the backup interval must be positive, not %s", now.BackupInterval)
	}
	t.mu.Lock()
	t.now = now
	changed := t.changed
	t.mu.Unlock()
	if changed != nil {
		changed()
	}
	return nil
}

// begin takes what a configuration says.
func (t *Tuner) begin(c Config, changed func()) {
	if t == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.changed, t.now = changed, c.tuning()
}

// tuning is what a configuration begins with.
func (c *Config) tuning() Tuning {
	return Tuning{BackupInterval: c.Policy.BackupInterval, DefragThreshold: c.Policy.DefragThreshold, DefragFrom: c.Policy.DefragFrom,
		DefragUntil: c.Policy.DefragUntil, Retention: c.Retention}
}

// tuned is what holds now.
func (c *Config) tuned() Tuning {
	t := c.Tuner
	if t == nil {
		return c.tuning()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.now
}

// policy is what the planner goes by now.
func (c *Config) policy() model.Policy {
	p, now := c.Policy, c.tuned()
	p.BackupInterval, p.DefragThreshold, p.DefragFrom, p.DefragUntil = now.BackupInterval, now.DefragThreshold, now.DefragFrom, now.DefragUntil
	if c.MayCreate != nil {
		p.MayCreate = c.MayCreate()
	}
	return p
}
