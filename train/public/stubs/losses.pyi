from physseg.train.public.losses import *
