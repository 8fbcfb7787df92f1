mod close;
mod fallback;
mod hostile;
mod join;
mod loss;
mod review;
mod script;
mod transfer;
