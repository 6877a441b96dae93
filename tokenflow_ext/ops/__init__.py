"""One room per op: schema, public function, checks, reference, fallback, autograd."""
