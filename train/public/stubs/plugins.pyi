from physseg.train.public.plugins import *
